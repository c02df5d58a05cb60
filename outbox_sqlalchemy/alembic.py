"""For Alembic's `env.py`, in a repository where Django's migrations, or a DBA, make the outbox and other tables."""


def include_object(object: object, name: str | None, type_: str, reflected: bool, compare_to: object | None) -> bool:
    """Have Alembic leave alone every table that is in the database and not on its metadata, instead of dropping it.

    Pass it to `context.configure(include_object=include_object)`. A table that you take off the metadata is left alone as
    well: write its `drop_table` by hand.
    """
    return not (type_ == "table" and reflected and compare_to is None)
