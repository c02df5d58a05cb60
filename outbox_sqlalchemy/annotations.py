"""Annotated shortcuts for handlers."""

from typing import Annotated

from sqlalchemy.ext.asyncio import AsyncSession

from outbox_core.faststream.annotations import Context

OutboxSession = Annotated[AsyncSession, Context("message.session")]
