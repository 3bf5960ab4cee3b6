"""Whole-image contrastive training of a CLIP from captions."""

from pathlib import Path

from regionclip_jax.jobs import assembly, streams, training_run
from regionclip_jax.settings import TrainClipSettings
from regionclip_jax.steps.train_clip_step import make_train_clip_step


def run(settings: TrainClipSettings, workdir: Path) -> Path:
    """Trains and returns the model directory."""
    source = streams.build_image_text_source(settings.data)
    model = assembly.build_model(settings.model, frozen_norm=False)
    assembly.log_dtype("model", settings.model.dtype)
    optimizer = assembly.build_optimizer(settings.optimizer, settings.run.num_steps)

    def make_step():
        image_text = assembly.build_image_text_loss(settings.image_text_chunk, settings.run)
        step = make_train_clip_step(model, optimizer, image_text)
        return lambda state, frozen, batch: step(state, batch)

    return training_run.train(
        workdir,
        settings,
        contents={"records": len(source)},
        export=training_run.as_clip(assembly.architecture(settings.model)),
        make_variables=lambda: assembly.initial_variables(settings.model, settings.run.seed),
        make_state=lambda variables: assembly.build_state(settings.optimizer, variables, optimizer),
        make_step=make_step,
        make_frozen=dict,
        stream=lambda start: streams.stream_batches(
            settings.data,
            source,
            batch_size=settings.run.batch_size,
            seed=settings.run.seed,
            start_record=start,
        ),
    )
