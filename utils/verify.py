"""Judge a suspect by its answers alone: `python -m utils.verify export RUN --to DIR`, then `... claim RUN ...`.

`... prepare DIR` commits to the images of the triggers before public randomness draws their labels, so that `claim`
convinces people who do not trust the owner; `... timestamp DIR --tsa URL` has the date of a commitment signed.

For comparison, without triggers: `... akh RUN --benign RUN3 --suspect RUN2` asks whether a suspect repeats RUN's
mistakes on test images more often than benign models do, `... di RUN --suspect RUN2` whether it knows RUN's training
images, `... eef RUN --benign RUN3 --suspect RUN2` whether its gradients show RUN's secret style. `... certify RUN`
measures a model's triggers under noise on its weights.

Exit status: 0 the claim holds (or the other command is done), 1 it does not hold, 2 an error. Of several suspects it
holds against any for `claim --suspects`, against all for akh, di and eef.
"""

import signal
import sys
from pathlib import Path

from utils.ownership.claim import add_claim
from utils.ownership.commitment import add_export
from utils.ownership.timestamp import add_timestamp
from utils.rivals.akh import add_akh
from utils.rivals.dataset_inference import add_di
from utils.rivals.embedded_features import add_eef
from utils.rivals.randomized_smoothing import add_certify
from utils.system.files import check_output_file
from utils.system.refusals import Interrupted, Parser, Refusal, lacks_memory, refuse_in_one_sentence
from utils.watermark.prepared import add_prepare

OUTPUTS = {"json": ".json", "plot": ".png", "keep_answers": ""}  # flags of files that are written, with their endings
INPUTS = ("run", "predictions", "suspect", "suspects", "benign", "columns", "image_timestamp", "tsa_ca")


def check_outputs(flags) -> None:
    """Refuse a file to be written that would replace what another flag names, or a file of a run that one names."""
    named = {name: value if isinstance(value, list) else [value] for name in (*OUTPUTS, *INPUTS)
             if (value := getattr(flags, name, None))}
    for name in filter(named.get, OUTPUTS):
        kept = [Path(path) for other in named if other != name for path in named[other] if path]
        check_output_file(*named[name], f"--{name.replace('_', '-')}", OUTPUTS[name], kept)


def _stop(signum, frame):
    signal.signal(signum, signal.SIG_IGN)  # a terminal that closes sends SIGHUP, and its shell a second one
    raise KeyboardInterrupt(signum)


@refuse_in_one_sentence
def main(argv=None) -> int:
    """The exit status; an error that nobody foresaw is 2 as well, since 1 says that the claim does not hold."""
    parser = Parser(prog="python -m utils.verify", description=__doc__)
    parts = parser.add_subparsers(dest="what", required=True)
    for add in (add_prepare, add_timestamp, add_export, add_claim, add_akh, add_di, add_eef, add_certify):
        add(parts)
    # so that no temporary folder of triggers stays behind; under nohup SIGHUP stays ignored
    caught = [signal.SIGTERM] + [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)
    flags, old = None, {signum: signal.signal(signum, _stop) for signum in caught}
    try:
        flags = parser.parse_args(argv)
        check_outputs(flags)
        return flags.call(flags)
    except (Refusal, Interrupted, OSError):
        raise
    except KeyboardInterrupt as stop:
        kept = getattr(flags, "keep_answers", None)
        way = f"goes on from the answers that {kept} holds" if kept else "begins anew"
        raise Interrupted(*stop.args or [signal.SIGINT], f"interrupted; the same command {way}") from stop
    except Exception as error:
        if lacks_memory(error):
            raise
        raise Refusal(f"an unexpected {type(error).__name__} ({str(error)[:200]}): a file is damaged, or this is a "
                      "defect of the program; nothing was decided") from error
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)


if __name__ == "__main__":
    sys.exit(main())
