"""An alert that a person sees: a run in the UI, an event, and a message where a notification block is saved."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from prefect import flow, get_run_logger
from prefect.artifacts import acreate_markdown_artifact
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.events import emit_event

from catalog.apart import kept_apart
from catalog.markdown import plain
from catalog.schema import StoreError

BLOCK_NAME: Final = "landslidenet-alert"
"""Name of the notification block that alerts are sent with; any type that Prefect has (Slack, Teams, webhook ...)."""
MAX_TOLD: Final = 2000
"""Characters of a failure's message that are passed on."""


@flow(name="alert", flow_run_name="{what}: {subject}")
async def alert(what: str, subject: str, told: str | None = None) -> None:
    """Tell of `what` happened to `subject`: a log line, an artifact, a `landslidenet.alert` event, a notification.

    Automations of prefect.yaml start it; docs/operations.md says what each alert means.

    Args:
        what: Kind of trouble, e.g. `run failed`.
        subject: The run or watcher that has it.
        told: What it said itself.

    """
    message = (told or "no message").strip()[:MAX_TOLD]
    get_run_logger().error("%s: %s\n%s", what, subject, message)
    quoted = "\n".join(f"    {line}" for line in message.splitlines())
    await acreate_markdown_artifact(f"## {plain(f'{what}: {subject}')}\n\n{quoted}\n", key="alert", description=what)
    emit_event(
        "landslidenet.alert",
        resource={
            "prefect.resource.id": f"landslidenet.alert.{what.replace(' ', '-')}",
            "prefect.resource.name": subject,
        },
        payload={"what": what, "subject": subject, "told": message},
    )
    failures: list[str] = []
    await notify(await notification_blocks(failures), body=message, subject=f"landslidenet · {what}: {subject}")
    if failures:
        raise StoreError("; ".join(failures))


async def notify(blocks: Sequence[NotificationBlock], *, body: str, subject: str) -> None:
    """Send a message with each block; one that fails keeps none of the others from it, and is raised at the end."""
    told = await asyncio.gather(*(block.notify(body=body, subject=subject) for block in blocks), return_exceptions=True)
    for failure in told:
        if failure is not None:
            raise failure


async def notification_blocks(failures: list[str]) -> list[NotificationBlock]:
    """The saved blocks of that name that can notify, one of each type at most; what cannot be read is a failure."""
    async with get_client() as client:
        documents = await client.read_block_documents(include_secrets=False)
    saved: list[Block] = []
    for document in (document for document in documents if document.name == BLOCK_NAME):
        with kept_apart(f"notification block {document.id}", failures):
            saved.append(await Block.aload_from_ref(document.id))
    return [block for block in saved if isinstance(block, NotificationBlock)]
