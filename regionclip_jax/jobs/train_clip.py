"""Whole-image contrastive training of a CLIP from captions."""

from pathlib import Path

from regionclip_jax.config import TrainClipConfig, as_plain
from regionclip_jax.jobs import assembly, streams, training_run
from regionclip_jax.steps.train_clip_step import make_train_clip_step


def run(config: TrainClipConfig, workdir: Path) -> Path:
    """Trains and returns the model directory."""
    source = streams.build_image_text_source(config.data)
    model = assembly.build_model(config.model, frozen_norm=False)
    assembly.log_dtype("model", config.model.dtype)
    optimizer = assembly.build_optimizer(config.optimizer, config.run.num_steps)

    def make_step():
        image_text = assembly.build_image_text_loss(config.image_text_chunk, config.run)
        step = make_train_clip_step(model, optimizer, image_text)
        return lambda state, frozen, batch: step(state, batch)

    return training_run.train(
        workdir,
        config.run,
        name="train_clip",
        settings=as_plain(config),
        contents={"records": len(source)},
        export=training_run.as_clip(assembly.architecture(config.model)),
        make_variables=lambda: assembly.initial_variables(config.model, config.run.seed),
        make_state=lambda variables: assembly.build_state(config.optimizer, variables, optimizer),
        make_step=make_step,
        make_frozen=dict,
        stream=lambda start: streams.stream_batches(
            config.data,
            source,
            batch_size=config.run.batch_size,
            seed=config.run.seed,
            start_record=start,
        ),
    )
