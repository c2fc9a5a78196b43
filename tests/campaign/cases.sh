#!/usr/bin/env bash
# Run the shared cases and print one line for each: tests/campaign/cases.sh DIR [PART OF A NAME…]
exec "${PY:-python}" "$(dirname "$(realpath "$0")")/cases.py" "$@"
