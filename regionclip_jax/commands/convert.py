"""Convert checkpoints of CLIP and RegionCLIP to a model directory; needs no PyTorch.

    regionclip convert --source RN50.pt --output models/rn50
    regionclip convert --source b32_400m.pt --preset ViT-B-32-quickgelu --output models/metaclip_b32
    regionclip convert --localizer rpn_coco_48.pth --output models/rn50
    regionclip convert --localizer workdir/localizer/model --output workdir/scenes/model
    regionclip convert --trunk R-50.pkl --output models/rn50_imagenet

The source may be an OpenAI archive, a RegionCLIP or plain .pth file, or safetensors; a localizer
also a .pkl of detectron2, or a model directory that a training wrote. No code from these files is
run. Unused tensors are listed; mismatches are refused. Heads, activation and preprocessing are read
from config.json (Hugging Face) or open_clip_config.json beside the source. A ViT without one needs
--preset or --activation; OpenAI's archives and RegionCLIP's files do not.
"""

import argparse

from regionclip_jax import self_check
from regionclip_jax.assembly.devices import start_devices
from regionclip_jax.conversion.choices import Choice
from regionclip_jax.conversion.convert_clip import convert_checkpoint
from regionclip_jax.conversion.convert_localizer import convert_localizer, convert_trunk
from regionclip_jax.conversion.convert_vocabulary import convert_vocabulary
from regionclip_jax.failures import one_line
from regionclip_jax.models.transformer_blocks import ACTIVATIONS
from regionclip_jax.reporting.progress import log_own_progress


@one_line()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", metavar="FILE", help="checkpoint of a model")
    parser.add_argument("--output", metavar="DIR", required=True, help="model directory to write")
    parser.add_argument(
        "--tower",
        choices=("student", "teacher"),
        default="student",
        help="which image tower of a RegionCLIP file that holds two (default: student)",
    )
    parser.add_argument(
        "--text-from",
        metavar="FILE",
        help="checkpoint to take the text tower from, for RegionCLIP files saved without one",
    )
    open_numbers = parser.add_mutually_exclusive_group()
    open_numbers.add_argument(
        "--preset",
        metavar="NAME",
        help="model of a file without configuration: docs/using_models.md",
    )
    open_numbers.add_argument(
        "--activation",
        choices=tuple(ACTIVATIONS),
        metavar="NAME",
        help="of such a file, if the presets of its sizes agree",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="vocabulary of a SigLIP, if it is not beside the source",
    )
    parser.add_argument(
        "--normalize-map",
        action=argparse.BooleanOptionalAction,
        help="regions are averages of the map's cells at unit length, as in CLIPSelf and models "
        "trained by it (default: EVA-02 alone)",
    )
    parser.add_argument(
        "--localizer",
        metavar="FILE",
        help="checkpoint with a proposal generator and its backbone, or a model directory with a "
        "localizer, to store as DIR/localizer",
    )
    parser.add_argument(
        "--trunk",
        metavar="FILE",
        help="ImageNet ResNet (MSRA's R-50.pkl), to store as DIR/trunk for configs/train_localizer",
    )
    parser.add_argument(
        "--vocabulary",
        metavar="FILE",
        help="bare tensor of class embeddings [C, D] to store as DIR/vocabulary.npz",
    )
    parser.add_argument("--names", metavar="TXT", help="names file of its rows")
    options = parser.parse_args(arguments)
    if not (options.source or options.localizer or options.trunk or options.vocabulary):
        parser.error(
            "give --source, --localizer, --trunk, --vocabulary with --names, or several of them"
        )
    if (options.vocabulary is None) != (options.names is None):
        parser.error("--vocabulary and --names go together")
    if options.source is None and options.text_from is not None:
        parser.error("--text-from needs --source")
    choice = Choice(options.preset, options.activation)
    if options.source is None and choice.flag is not None:
        parser.error("--preset and --activation need --source")
    if options.source is None and options.tokenizer is not None:
        parser.error("--tokenizer needs --source")
    if options.source is None and options.normalize_map is not None:
        parser.error("--normalize-map needs --source")
    log_own_progress()
    start_devices()  # the self-check needs them
    if options.source is not None:
        conversion = convert_checkpoint(
            options.source,
            options.output,
            tower=options.tower,
            text_from=options.text_from,
            choice=choice,
            tokenizer=options.tokenizer,
            normalize_map=options.normalize_map,
        )
        print(conversion.summary())
        print(f"self-check: {self_check.write(options.output)}")
    if options.localizer is not None:
        print(convert_localizer(options.localizer, options.output).summary())
    if options.trunk is not None:
        print(convert_trunk(options.trunk, options.output).summary())
    if options.vocabulary is not None:
        vocabulary = convert_vocabulary(options.vocabulary, options.names, options.output)
        print(f"vocabulary: {len(vocabulary.names)} names, D = {vocabulary.embeddings.shape[1]}")
    print(f"written: {options.output}")
    return 0
