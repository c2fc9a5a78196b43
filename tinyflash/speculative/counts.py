"""What speculation did for one text: steps, and how many of the drafted tokens were accepted."""

from dataclasses import dataclass


@dataclass
class StepCounts:
    """What the steps of one text came to; it grows while the text is made.

    passes        : forward passes of the model, those over the prompt included
    steps         : passes that verified a proposal, be it an empty one
    drafted       : tokens proposed
    accepted      : of these, tokens that the model agreed with
    draft_seconds : spent on proposing

    >>> StepCounts(passes=4, steps=3, drafted=12, accepted=6).tokens_per_step
    3.0
    """

    passes: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    draft_seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens that the steps yielded: each the accepted ones and one of the model's own."""
        return self.accepted + self.steps

    @property
    def tokens_per_step(self) -> float | None:
        """1 for plain decoding; None where there was no step."""
        return self.tokens / self.steps if self.steps else None

    def describe(self) -> str:
        """One line for people, where there was a step."""
        return (
            f"{self.accepted} of {self.drafted} drafted tokens accepted in {self.steps} steps: "
            f"{self.tokens_per_step:.2f} tokens a step"
        )
