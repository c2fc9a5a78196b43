"""Shows docstrings as they are written: the first line as text, the rest with its columns kept."""

import griffe


class PlainDocstrings(griffe.Extension):
    """Puts everything behind a docstring's first line into a fence, before it becomes HTML."""

    def on_instance(self, *, obj, **_):
        """Called by griffe for every module, class, function and attribute that it has read."""
        if obj.docstring is None:
            return
        first, _, rest = obj.docstring.value.partition("\n")
        if rest.strip():
            obj.docstring.value = f"{first}\n\n```text\n{rest.strip(chr(10))}\n```"
