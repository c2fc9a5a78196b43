"""`tinyflash record` and `tinyflash diff`."""

from contextlib import suppress

from tinyflash import terminal
from tinyflash.commands.arguments import verb
from tinyflash.commands.common import ids_of, open_model, standard_input
from tinyflash.oracle.tolerances import TOLERANCES


def arguments(verbs):
    """Add the verbs."""
    add = verb(verbs, "record", record, "write every intermediate tensor")
    add("model", metavar="MODEL", help="whose tensors")
    add("--out", required=True, metavar="FILE.safetensors", help="the recording")
    add("--text", metavar="TEXT", help="what it reads; -: standard input; default: --ids")
    add("--ids", metavar="1,2,3", help="the same as token ids; default: those of --text")
    add("--dtype", choices=("float32", "float64"), default="float32", help="of the pass")
    add("--squares", action="store_true", help="attention scores and patterns at any length")

    add = verb(verbs, "diff", diff, "name the first tensor in which two recordings differ")
    add("reference", metavar="REFERENCE.safetensors", help="what is right")
    add("other", metavar="OTHER.safetensors", help="what is compared with it")
    add("--dtype", choices=TOLERANCES, help="whose tolerance; default: what the recordings show")
    add("--all", action="store_true", help="show every tensor, not only those that differ")


def record(options):
    """`tinyflash record`"""
    from tinyflash.oracle.record import (
        manifest_of,
        record,
        refuse_foreign_recording,
        write_recording,
    )

    if (options.text is None) == (options.ids is None):
        raise ValueError("Give either --text TEXT or --ids 1,2,3.")
    refuse_foreign_recording(options.out)
    model = open_model(options.model, dtype=options.dtype)
    if options.ids is not None:
        ids = ids_of(options.ids, "--ids")
    else:
        ids = model.encode(standard_input("text") if options.text == "-" else options.text)
    with terminal.waiting(f"Recording {len(ids)} tokens"):
        taps = record(model, ids, squares=options.squares or None)
        command = f"tinyflash record {options.model} --dtype {options.dtype}"
        manifest = manifest_of(model, ids, taps, command=command)
        write_recording(options.out, taps, manifest)
    nbytes = sum(tensor.nbytes for tensor in taps.values())
    if options.json:
        terminal.json_line({"out": options.out, "tensors": len(taps), "bytes": nbytes, "ids": ids})
    else:
        size = f"{nbytes / 1e6:.1f} MB"
        terminal.say(f"{options.out}: {len(taps)} tensors of {len(ids)} tokens, {size}")


def diff(options):
    """`tinyflash diff`: exit 1 if the recordings differ."""
    from tinyflash.oracle.diff import compare, print_comparison
    from tinyflash.oracle.record import read_recording

    with terminal.waiting("Comparing"):
        reference, other = read_recording(options.reference), read_recording(options.other)
        comparison = compare(reference, other, options.dtype)
    with suppress(BrokenPipeError):  # who reads no further still gets the exit code
        if options.json:
            terminal.json_line(comparison.to_json())
        else:
            print_comparison(comparison, show_all=options.all)
    return 0 if comparison.equal else 1
