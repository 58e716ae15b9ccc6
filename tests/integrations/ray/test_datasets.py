import itertools

import numpy as np
import pyarrow as pa
import pytest
from tests.integrations.ray.watched import ROWS, TEXTS, deaths, embedded, watched

import nimbed
from nimbed.errors import ConfigurationError, InputError, SpaceMismatchError
from nimbed_ray import EmbedTexts, embed_dataset, label_of

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.usefixtures("cluster")


def corpus(*, rows=ROWS):
    """Return a dataset of uneven blocks."""
    table = pa.table({"id": list(range(rows)), "text": TEXTS[:rows]})
    cuts = [0, rows // 7, rows // 7 + 3, rows // 2, rows]
    return ray.data.from_arrow(
        [table.slice(start, stop - start) for start, stop in itertools.pairwise(cuts)]
    )


def vectors_by_id(dataset):
    table = pa.concat_tables(
        batch for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    ).sort_by("id")
    width = table.schema.field("embedding").type.list_size
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    return table["id"].to_pylist(), flat.reshape(-1, width)


def test_actors_that_are_killed_on_the_way_give_the_vectors_of_one_process(tmp_path):
    deadly = [TEXTS[100], TEXTS[ROWS - 1]]
    embed = EmbedTexts(
        watched(tmp_path, deadly=deadly), input_type="passage", embedding_type="int8"
    )
    ids, vectors = vectors_by_id(embed_dataset(corpus(), embed, batch_size=500))
    wanted = nimbed.FakeEmbedder().embed(TEXTS, input_type="passage", embedding_type="int8")
    assert ids == list(range(ROWS))
    np.testing.assert_array_equal(vectors, wanted.vectors)
    assert deaths(tmp_path) == 2
    assert embedded(tmp_path) >= ROWS


def test_the_schema_of_the_dataset_is_the_promised_one():
    embed = EmbedTexts(nimbed.FakeEmbedder(), input_type="query", embedding_type="ubinary")
    given = corpus(rows=10)
    made = embed_dataset(given, embed).materialize()
    promised = embed.schema(given.schema().base_schema)
    assert made.schema().base_schema.equals(promised, check_metadata=True)
    assert label_of(made) == embed.label


def test_the_class_goes_into_map_batches_as_it_is():
    made = corpus(rows=50).map_batches(
        EmbedTexts,
        fn_constructor_args=(nimbed.FakeEmbedder(),),
        fn_constructor_kwargs={"input_type": "query", "dimensions": 32},
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    _, vectors = vectors_by_id(made)
    wanted = nimbed.FakeEmbedder().embed(TEXTS[:50], input_type="query", dimensions=32)
    np.testing.assert_array_equal(vectors, wanted.vectors)


def test_blocks_that_disagree_are_refused():
    def made(**options):
        embed = EmbedTexts(nimbed.FakeEmbedder(), **options)
        return ray.data.from_arrow(embed(pa.table({"text": ["one"]})))

    passages = made(input_type="passage")
    with pytest.raises(ConfigurationError, match="passage vectors of .*, query vectors of"):
        label_of(passages.union(made(input_type="query")))
    with pytest.raises(SpaceMismatchError, match="int8"):
        label_of(passages.union(made(input_type="passage", embedding_type="int8")))
    with pytest.raises(ConfigurationError, match="was not written by nimbed"):
        label_of(passages.union(ray.data.from_arrow(pa.table({"text": ["one"]}))))


def test_what_nimbed_says_in_an_actor_can_be_caught_as_what_it_is():
    dataset = ray.data.from_arrow(pa.table({"id": [1, 2], "text": ["one", ""]}))
    dataset.context.raise_original_map_exception = True
    embed = EmbedTexts(nimbed.FakeEmbedder(), input_type="passage", id_field="id")
    with pytest.raises(InputError, match="the row with id 2: the text is blank"):
        embed_dataset(dataset, embed).materialize()


def test_more_actors_than_the_cluster_has_room_for_are_refused():
    embed = EmbedTexts(nimbed.FakeEmbedder(), input_type="passage")
    with pytest.raises(ConfigurationError, match="room for 2"):
        embed_dataset(corpus(rows=10), embed, actors=3)
    with pytest.raises(ConfigurationError, match="has a GPU"):
        embed_dataset(corpus(rows=10), embed, gpus=True)
    with pytest.raises(ConfigurationError, match="batch_size must be at least 1"):
        embed_dataset(corpus(rows=10), embed, batch_size=0)
