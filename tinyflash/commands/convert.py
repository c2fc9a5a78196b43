"""`tinyflash convert`: writes a flash directory, or checks one."""

from tinyflash import terminal
from tinyflash.commands.arguments import verb
from tinyflash.flash.store.bundles import BUNDLINGS
from tinyflash.flash.store.directory import open_store
from tinyflash.flash.store.verified import check_anew


def arguments(verbs):
    """Add the verb."""
    add = verb(verbs, "convert", convert_model, "write a model as a flash directory")
    add("model", metavar="MODEL", help="what is written")
    add("out", nargs="?", metavar="OUT", help="the directory to write; none with --check")
    add("--bundling", default="row-column", choices=BUNDLINGS, help="what lies side by side")
    add(
        "--dtype",
        default="keep",
        choices=("keep", "float16", "bfloat16", "float32"),
        help="of the weights written",
    )
    add("--check", action="store_true", help="MODEL is a flash directory: verify its digests")


def convert_model(options):
    """`tinyflash convert`"""
    from tinyflash.flash.store.convert import convert

    if options.check:
        if options.out is not None:
            raise ValueError("--check looks at one flash directory and writes none; leave OUT out.")
        store = open_store(options.model)
        with terminal.progress("Checking", "bytes") as report:
            check_anew(store, report)
        result = {"store": str(store.path), "whole": True}
        line = f"{store.path}: every digest is as it was written"
    else:
        if options.out is None:
            raise ValueError("Say where to write: tinyflash convert MODEL OUT.")
        settings = {"bundling": options.bundling, "dtype": options.dtype}
        with terminal.progress("Converting", "bytes") as report:
            store = open_store(convert(options.model, options.out, **settings, progress=report))
        nbytes = sum(about["bytes"] for about in store.manifest["files"].values())
        result = {"store": str(store.path), "bytes": nbytes, "dtype": store.dtype}
        result |= {"bundling": store.bundling, "bundle_bytes": store.row_bytes}
        line = (
            f"{store.path}: {nbytes / 1e6:,.1f} MB, bundles of {store.row_bytes:,} bytes "
            f"({store.dtype}, {store.bundling})"
        )
    terminal.json_line(result) if options.json else terminal.say(line)
