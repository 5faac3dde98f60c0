"""Surveys: what all nodes answer, which of them are missing, and when a survey ends."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

import pytest

from tests.core.test_cluster_nodes import Node, nodes, pass_for, settled
from tests.support.serving_hub import Clock
from wshub import BrokerUnavailable, Hub, MisuseError
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.core.cluster_commands import NODE_TIMEOUT, ClusterCommands
from wshub.core.cluster_surveys import MAX_ANSWERING, check_answer


async def never(_body: Any) -> None:
    await asyncio.get_running_loop().create_future()


def id_of(node: Node) -> str:
    return node.cluster.info.id


@pytest.mark.parametrize("timeout_ms", [50, 300])
async def test_a_survey_ends_when_its_time_is_over(timeout_ms: int) -> None:
    async with nodes(2, Clock()) as (one, two):
        one.hub.answer_survey("topic", lambda body: "here")
        two.hub.answer_survey("topic", never)
        begun = time.monotonic()
        survey = await one.hub.survey("topic", timeout_ms=timeout_ms)
        # The clock of the hub stands still, so no sweep has ended it.
        assert time.monotonic() - begun >= timeout_ms / 1000 - 0.01
        assert survey.answers == {id_of(one): "here"}
        assert survey.missing == (id_of(two),)


async def test_a_survey_ends_with_the_hub() -> None:
    async with nodes(2, Clock()) as (one, two):
        one.hub.answer_survey("topic", never)
        two.hub.answer_survey("topic", never)
        survey = asyncio.create_task(one.hub.survey("topic", timeout_ms=3_600_000))
        await settled()
        await one.hub.close()
        assert len((await survey).missing) == 2


async def test_a_survey_of_a_hub_that_has_said_goodbye_finds_all_missing() -> None:
    async with nodes(2, Clock()) as (one, two):
        commands = one.cluster.commands
        one.hub.answer_survey("topic", lambda body: "here")
        commands.close()
        survey = await commands.survey("topic", None, 3600)
        assert survey.answers == {}
        assert survey.missing == tuple(sorted((id_of(one), id_of(two))))


async def test_a_survey_that_is_cancelled_leaves_nothing_behind() -> None:
    async with nodes(2, Clock()) as (one, two):
        one.hub.answer_survey("topic", never)
        two.hub.answer_survey("topic", never)
        before = len(asyncio.all_tasks())
        survey = asyncio.create_task(one.hub.survey("topic"))
        await settled()
        survey.cancel()
        await asyncio.wait([survey])
        await settled()
        surveys = one.cluster.commands._surveys
        assert not surveys._open
        assert not surveys._answering_own
        # The answer of the other node goes on for its ten seconds.
        assert len(asyncio.all_tasks()) == before + 1


async def test_a_node_without_an_answer_is_not_waited_for() -> None:
    async with nodes(3, Clock()) as (one, two, three):
        one.hub.answer_survey("topic", lambda body: "here")
        two.hub.answer_survey("topic", lambda body: 1 / 0)
        survey = await one.hub.survey("topic", timeout_ms=3_600_000)
        assert survey.answers == {id_of(one): "here"}
        assert survey.missing == tuple(sorted((id_of(two), id_of(three))))
        assert (await two.hub.survey("nobody knows this", timeout_ms=3_600_000)).answers == {}


async def test_a_node_that_says_goodbye_is_not_waited_for() -> None:
    async with nodes(2, Clock()) as (one, two):
        one.hub.answer_survey("topic", lambda body: "here")
        two.hub.answer_survey("topic", never)
        survey = asyncio.create_task(one.hub.survey("topic", timeout_ms=3_600_000))
        await settled()
        await two.hub.close()
        assert (await survey).missing == (id_of(two),)


async def test_a_node_that_is_forgotten_is_not_waited_for() -> None:
    clock = Clock()
    async with nodes(2, clock) as (one, two):
        one.hub.answer_survey("topic", lambda body: "here")
        two.hub.answer_survey("topic", never)
        survey = asyncio.create_task(one.hub.survey("topic", timeout_ms=3_600_000))
        await settled()
        await pass_for(NODE_TIMEOUT + 1, clock, one)
        assert (await survey).missing == (id_of(two),)


async def test_while_the_engine_is_away_a_survey_is_refused() -> None:
    clock = Clock()
    engine = MemoryEngine()
    async with Hub(clock=clock, broker=MemoryBroker(engine)) as hub, Hub(broker=MemoryBroker(engine)) as other:
        await hub.broker_started()
        await other.broker_started()
        await settled()
        engine.stop()
        await settled()
        with pytest.raises(BrokerUnavailable):
            await hub.room_count("lobby")
        # Also when it knows no other node any more: it cannot tell that there is none.
        await pass_for(2 * NODE_TIMEOUT, clock, Node(hub))
        assert len(await hub.nodes()) == 1
        with pytest.raises(BrokerUnavailable):
            await hub.room_count("lobby")


async def test_a_survey_that_the_broker_does_not_take_is_refused() -> None:
    async with nodes(2, Clock()) as (one, _two):
        one.cluster.broker_send = lambda channel, envelope: False
        with pytest.raises(BrokerUnavailable):
            await one.hub.survey("topic")
        assert not one.cluster.commands._surveys._open


async def test_the_own_answer_is_what_json_makes_of_it() -> None:
    async with nodes(2, Clock()) as (one, two):
        bodies = []

        def answer(body: Any) -> Any:
            bodies.append(body)
            return {1: ("a", "b")}

        one.hub.answer_survey("topic", answer)
        two.hub.answer_survey("topic", answer)
        survey = await one.hub.survey("topic", ("x", 1))
        assert list(survey.answers.values()) == [{"1": ["a", "b"]}] * 2
        assert bodies == [["x", 1]] * 2


@pytest.mark.parametrize("later", [False, True])
async def test_an_answer_that_is_no_json_is_logged_and_counts_as_none(
    later: bool, caplog: pytest.LogCaptureFixture
) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]

    async def in_a_coroutine(body: str) -> Any:
        return object() if body == "object" else deep

    def at_once(body: str) -> Any:
        return object() if body == "object" else deep

    async with nodes(2, Clock()) as hubs:
        for node in hubs:
            node.hub.answer_survey("topic", in_a_coroutine if later else at_once)
        for body in ("object", "deep"):
            survey = await hubs[0].hub.survey("topic", body, timeout_ms=3_600_000)
            assert survey.answers == {}
            assert len(survey.missing) == 2
    assert len([record for record in caplog.records if "is no JSON" in record.message]) == 4
    while deep:
        deep = deep.pop()


async def test_a_body_that_is_no_json_is_refused() -> None:
    async with nodes(2, Clock()) as (one, _two):
        sent = one.record_sent()
        with pytest.raises(TypeError):
            await one.hub.survey("topic", object())
        with pytest.raises(TypeError):
            await one.hub.room_count(7)  # type: ignore[arg-type]
        with pytest.raises(MisuseError):
            await one.hub.survey(7)  # type: ignore[arg-type]
        assert sent == []


async def test_only_so_many_coroutines_answer_other_nodes_at_once() -> None:
    async with nodes(2, Clock()) as (one, two):
        one.hub.answer_survey("slow", never)
        one.hub.answer_survey("quick", lambda body: "here")
        before = len(asyncio.all_tasks())
        sent = one.record_sent()
        for number in range(2_000):
            one.receive(int(id_of(two), 16), {"do": "survey", "topic": "slow", "number": number})
        assert len(asyncio.all_tasks()) == before + MAX_ANSWERING
        assert [command["error"] for command in sent] == ["busy"] * (2_000 - MAX_ANSWERING)
        assert one.stats.broker.dropped == {}
        # The limit holds for answers of the application to other nodes. Members are counted, and the node may ask.
        assert (await two.hub.survey("wshub.room_count", "lobby")).missing == ()
        assert (await one.hub.survey("quick")).answers == {id_of(one): "here"}


async def test_an_answer_has_a_time_limit(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("wshub.core.cluster_surveys.ANSWER_TIMEOUT", 0.05)
    async with nodes(2, Clock()) as (one, two):
        two.hub.answer_survey("topic", never)
        with caplog.at_level(logging.WARNING, "wshub.broker"):
            survey = await one.hub.survey("topic", timeout_ms=3_600_000)
        assert len(survey.missing) == 2
        assert "was not answered within" in caplog.text
        assert not two.cluster.commands._surveys._answering


@pytest.mark.parametrize("reply", [{}, {"answer": "many"}, {"answer": None}, {"answer": True}, {"answer": -1}])
async def test_a_count_that_is_none_does_not_reach_the_application(reply: dict[str, Any]) -> None:
    async with nodes(2, Clock()) as (one, two):
        two.cluster.commands._surveys.asked = lambda node, topic, number, body: two.cluster.commands._send(
            f"node:{node}", {"do": "answer", "number": number, **reply}
        )
        survey = await one.hub.survey("wshub.room_count", "lobby", timeout_ms=3_600_000)
        assert survey.answers == {id_of(one): 0}
        assert survey.missing == (id_of(two),)
        assert one.stats.ignored.unreadable == 1


async def test_only_the_first_answer_of_a_node_counts() -> None:
    async with nodes(3, Clock()) as (one, two, three):
        one.hub.answer_survey("topic", lambda body: 1)
        two.hub.answer_survey("topic", lambda body: 2)
        three.hub.answer_survey("topic", never)
        survey = asyncio.create_task(one.hub.survey("topic", timeout_ms=3_600_000))
        await settled()
        for command in ({"answer": 7}, {"error": "failed"}):
            one.receive(int(id_of(two), 16), {"do": "answer", "number": 1, **command})
        one.receive(int(id_of(three), 16), {"do": "answer", "number": 1, "error": "busy"})
        assert (await survey).answers == {id_of(one): 1, id_of(two): 2}


async def test_answers_that_the_hub_keeps_are_shared() -> None:
    async with nodes(1, Clock()) as (one,):
        answers: dict[str, Any] = {}
        commands = ClusterCommands(one.cluster, one.hub, answers)
        answers["topic"] = lambda body: "from the hub"
        assert (await commands.survey("topic", None, 5)).answers == {id_of(one): "from the hub"}
        one.hub.answer_survey("other", len)
        assert one.hub._survey_answers["other"] is len


def test_what_cannot_answer_a_survey_is_refused() -> None:
    for topic, answer in ((7, len), ("wshub.mine", len), ("topic", "answer"), ("topic", None)):
        with pytest.raises(MisuseError):
            check_answer(topic, answer)
    assert check_answer("topic", len) == "topic"


async def test_replies_are_valid_json() -> None:
    async with nodes(2, Clock()) as (one, two):
        sent = one.record_sent()
        one.hub.answer_survey("topic", lambda body: body)
        await two.hub.survey("topic", "\ud800 é")
        assert json.loads(json.dumps(sent[-1]))["answer"] == "\ud800 é"
