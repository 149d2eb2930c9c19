"""The command lines of distill.py and extraction.py."""

import argparse
from dataclasses import dataclass

from utils.attacks.editing import FineTuning, Sweep
from utils.attacks.settings import (
    add_attack_flags,
    add_distillation_flags,
    add_extraction_flags,
    complete_distillation_flags,
    complete_extraction_flags,
    distillation,
    extraction,
)
from utils.attacks.surrogate import Extraction
from utils.attacks.theft import TheftSettings
from utils.command_line.parser import add_train_type, parser_of
from utils.data.sets import add_data_flags
from utils.runs.settings import OutputSettings, add_output_flags, source_folder
from utils.system.refusals import Parser
from utils.training.settings import add_training_flags, training_settings
from utils.watermark.trigger_settings import add_trigger_flags


@dataclass(frozen=True)
class AttackCommand:
    """What distill.py or extraction.py was asked for."""

    theft: TheftSettings
    attack: Extraction | FineTuning | Sweep


def distill_command(argv=None) -> AttackCommand:
    """The settings of distill.py."""
    p = _attack_parser("Distil a surrogate from a source with true labels and soft targets (Eq. 6).", "distill.py",
                       add_distillation_flags)
    flags = p.parse_args(argv)
    complete_distillation_flags(flags)
    return AttackCommand(_theft_settings(flags, "distillation"), distillation(flags))


def extraction_command(argv=None) -> AttackCommand:
    """The settings of extraction.py; Refusal where flags do not go together."""
    flags = extraction_flags(argv)
    return AttackCommand(_theft_settings(flags, "extraction"), extraction(flags))


def extraction_flags(argv=None) -> argparse.Namespace:
    """The flags of extraction.py, checked."""
    p = _attack_parser("Extract a surrogate from a source through its answers, or edit a copy of it.", "extraction.py",
                       add_extraction_flags)
    flags = p.parse_args(argv)
    complete_extraction_flags(flags)
    return flags


def _theft_settings(flags, folder: str) -> TheftSettings:
    source = source_folder(flags, flags.teacher_model_type)
    files = dict(skip_bad_images=flags.skip_bad_images, image_size=flags.image_size)
    output = OutputSettings(source / f"{folder}{flags.additional_message}", vars(flags), flags.overwrite,
                            "another -admsg")
    return TheftSettings(
        source=source,
        model_type=flags.teacher_model_type,
        train_type=flags.train_type,
        select=flags.select,
        statistics=flags.teacher_bn,
        home=dict(dataset=flags.dataset, data_dir=flags.data_dir, train_size=None, **files),
        own=dict(dataset=flags.dataset_source, data_dir=flags.data_dir_source, train_size=flags.train_size, **files),
        output=output,
        training=training_settings(flags),
        device=flags.device,
        benign=tuple(flags.benign),
    )


def _attack_parser(description: str, script: str, add_own_flags) -> Parser:
    p = parser_of(description, script)
    add_data_flags(p)
    add_train_type(add_trigger_flags(p))
    add_attack_flags(p)
    add_own_flags(p)
    add_training_flags(p)
    add_output_flags(p, "-e", "--exp-name", "-d", "--dir")
    return p
