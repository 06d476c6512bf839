"""What waits together is answered together, and one failure ends nothing."""

import asyncio
import threading

import pytest

from unseen.deploy.server.batching import Batching


def test_what_waits_is_answered_in_one_batch_each_with_its_own():
    sizes, may_go = [], threading.Event()

    def work(items):
        may_go.wait(10)
        sizes.append(len(items))
        return [item * item for item in items]

    async def ask():
        batching = Batching(work, most=8)
        tasks = [asyncio.create_task(batching.ask(item)) for item in range(20)]
        await asyncio.sleep(0.05)
        may_go.set()
        answers = await asyncio.gather(*tasks)
        batching.close()
        return answers

    assert asyncio.run(ask()) == [item * item for item in range(20)]
    assert max(sizes) == 8
    assert sum(sizes) == 20


def test_a_failure_is_told_to_those_who_asked_and_the_next_are_served():
    def work(items):
        if "bad" in items:
            raise RuntimeError("no")
        return items

    async def ask():
        batching = Batching(work, most=1)
        with pytest.raises(RuntimeError, match="no"):
            await batching.ask("bad")
        assert await batching.ask("good") == "good"
        batching.close()

    asyncio.run(ask())


def test_who_has_gone_away_costs_nothing():
    seen, may_go = [], threading.Event()

    def work(items):
        may_go.wait(10)
        seen.extend(items)
        return items

    async def ask():
        batching = Batching(work, most=1)
        first = asyncio.create_task(batching.ask("first"))
        gone = asyncio.create_task(batching.ask("gone"))
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.sleep(0)
        may_go.set()
        await first
        batching.close()

    asyncio.run(ask())
    assert seen == ["first"]
