"""The tables of a desk: one log that is only ever appended to, and views of it that can be made again from nothing.

Forward only: the log's form never changes (a new thing to say is a new kind of event); a new form of the views is made
by dropping the old ones and replaying the log, so there are no scripts of migration to go wrong.

Try it alone:

    python -c "from zifio.label.schema import VIEWS; print([table.name for table in VIEWS])"
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
)

VIEW_VERSION = 1
"""Raised with every change of the views below; a desk of an older version is brought forward when it is opened."""
LOG_VERSION = 1
"""The form of the log. A desk with a newer one needs a newer zifio."""

META = MetaData()

EVENTS = Table(
    "desk_events",
    META,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("kind", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("key", Text, unique=True),
    Column("body", Text, nullable=False),
)
"""The truth: what happened, in the order of commits. `key` makes what is sent twice happen once."""

FACTS = Table("desk_facts", META, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))
"""Versions of the log and of the views, and the settings as they are now."""

ITEMS = Table(
    "desk_items",
    META,
    Column("id", Text, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("priority", Double, nullable=False),
    Column("n_labels", Integer, nullable=False),
    Column("score", Double),
    Column("outcome", Text, nullable=False),
    Column("machine", Text),
    Column("expected", Text),
    Column("final", Text),
    Index("desk_items_queue", "role", "state", "priority", "seq"),
    Index("desk_items_seq", "seq", unique=True),
)
"""Items with where they stand: open, disputed or done. `machine` and `expected` are stances; `final` is the outcome."""

ANNOTATORS = Table(
    "desk_annotators",
    META,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("adjudicates", Boolean, nullable=False),
    Column("token_hash", Text, unique=True),
    Column("seq", BigInteger, nullable=False),
)
"""Who labels. Without a token they cannot log in: their labels were imported, or they were removed."""

LABELS = Table(
    "desk_labels",
    META,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("item", Text, nullable=False),
    Column("annotator", Text, nullable=False),
    Column("phase", Text, nullable=False),
    Column("stance", Text),
    Column("right", Boolean),
    Column("at", Double, nullable=False),
    Column("ms", BigInteger),
    Column("queue", Text, nullable=False),
    Column("saw_verdict", Boolean, nullable=False),
    Column("current", Boolean, nullable=False),
    Index("desk_labels_item", "item", "annotator", "phase"),
    Index("desk_labels_annotator", "annotator", "seq"),
)
"""Labels; `current` is false for those undone or replaced. `right` compares with a gold item's known label."""

SHOWN = Table(
    "desk_shown",
    META,
    Column("item", Text, primary_key=True),
    Column("annotator", Text, primary_key=True),
    Column("what", Text, primary_key=True),
    Column("seq", BigInteger, nullable=False),
)
"""Who asked for the verdict or was shown the pre-label, of which item."""

LEASES = Table(
    "desk_leases",
    META,
    Column("item", Text, primary_key=True),
    Column("annotator", Text, primary_key=True),
    Column("until", Double, nullable=False),
    Column("queue", Text, nullable=False),
    Index("desk_leases_annotator", "annotator", "until"),
)
"""Who has which item before them now. No part of the log: nothing is lost with it but the order of work."""

VIEWS = (ITEMS, ANNOTATORS, LABELS, SHOWN)
"""What `Store.rebuild` makes again from the log."""
