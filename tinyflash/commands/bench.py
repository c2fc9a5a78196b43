"""`tinyflash bench`: measures this machine."""

import json


def bench_disk(options):
    """`tinyflash bench disk`"""
    from tinyflash.bench import disk

    result = disk.run(options)
    if options.json:
        print(json.dumps(result))


def bench_flash(options):
    """`tinyflash bench flash`"""
    from tinyflash.bench import flash

    result = flash.bench_flash(options)
    if options.json:
        print(json.dumps(result))


def bench_speculative(options):
    """`tinyflash bench speculative`"""
    from tinyflash.bench import speculative

    result = speculative.bench_speculative(options)
    if options.json:
        print(json.dumps(result))
