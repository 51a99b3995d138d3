"""How a desk works: what everybody who labels at it shares. Set with `zifio label DB key=value`.

Try it alone:

    python -c "from zifio.label.settings import Settings; print(Settings())"
"""

from typing import Literal

from pydantic import Field

from zifio.config import Config


class Settings(Config):
    """The rules of one desk. A change is an event like any other and holds from then on."""

    wanted: int = Field(default=1, ge=1, le=100)
    """So many people label each item, none seeing what another said."""
    stop: Literal["first_error", "every"] = "first_error"
    """first_error: steps behind the first wrong one are not judged, as in PRM800K. every: all are."""
    queue: Literal["random", "order", "convincing", "disagreement", "gain"] = "random"
    """What comes next. random: a random sample, which estimates need. order: as imported. convincing: wrong answers
    with a high process score. disagreement: where people or machines differ. gain: where one more label tells most."""
    gold_every: int = Field(default=20, ge=0)
    """About one in so many items is a gold one, while there are some; 0 means none."""
    screening_pass: float = Field(default=0.8, ge=0, le=1)
    """Who gets fewer of the screening items right than this share gets no work."""
    lease_minutes: float = Field(default=30.0, gt=0)
    """An item shown to somebody goes to nobody else for this long."""
    reveal: bool = True
    """Whether the machine's pre-label is shown after the blind label, which may then be revised."""
    verdict: Literal["always", "after", "never"] = "always"
    """When the verifier's verdict may be asked for: while labelling (noted beside the label), after it, or not."""
    adjudicate: bool = True
    """Whether items on which labellers differ go to an adjudicator; else the majority decides."""
