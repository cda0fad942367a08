"""Documents cut into passages: sizes, places, and no character lost or doubled."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nanochat.documents.document import Block, Document
from nanochat.passages.cutting import MAX_CHARACTERS, MIN_CHARACTERS, USUAL_CHARACTERS, cut_passages

SENTENCE = "This sentence has forty characters, yes. "

BLOCKS = st.builds(
    Block,
    st.sampled_from(["paragraph", "heading", "list", "code"]),
    st.one_of(
        st.text(max_size=50), st.builds(str.__mul__, st.text(alphabet="ab .\n", max_size=20), st.integers(0, 99))
    ),
    st.sampled_from([(), ("A",), ("A", "B")]),
)


def document(*blocks: Block, title: str = "Title") -> Document:
    return Document("a/b.md", title, blocks)


def paragraph(num_characters: int, *headings: str) -> Block:
    text = SENTENCE * (num_characters // len(SENTENCE) + 1)
    return Block("paragraph", text[:num_characters].replace(" ", "-"), headings)


def sizes(*blocks: Block) -> list[int]:
    return [len(passage.text) for passage in cut_passages(document(*blocks))]


def test_short_blocks_are_joined_within_their_section() -> None:
    heading = Block("heading", "B", ("Title",), level=2)
    blocks = [paragraph(100, "Title"), paragraph(100, "Title"), heading, paragraph(100, "Title", "B")]
    passages = cut_passages(document(*blocks))
    assert [passage.headings for passage in passages] == [("Title",), ("Title", "B")]
    assert passages[0].text == f"{blocks[0].text}\n\n{blocks[1].text}"
    assert passages[1].text == blocks[3].text
    assert {passage.document for passage in passages} == {"a/b.md"}


def test_sizes() -> None:
    assert sizes(paragraph(199), paragraph(290)) == [491]  # the first one is too short to stand alone
    assert sizes(paragraph(199), paragraph(300)) == [199, 300]  # together they would exceed the limit
    assert sizes(paragraph(200), paragraph(290)) == [200, 290]
    assert sizes(paragraph(200), paragraph(100), paragraph(50)) == [302, 50]
    assert sizes() == []
    assert MIN_CHARACTERS < USUAL_CHARACTERS < MAX_CHARACTERS


def test_a_long_block_is_cut_at_sentences() -> None:
    passages = cut_passages(document(Block("paragraph", SENTENCE * 50, ())))
    assert all(passage.text.endswith("yes.") for passage in passages)
    assert sum(len(passage.text.split()) for passage in passages) == 50 * len(SENTENCE.split())


def test_the_headings_begin_with_the_title() -> None:
    blocks = [Block("paragraph", "x", ()), Block("paragraph", "y", ("A",)), Block("paragraph", "z", ("Title", "A"))]
    places = [("Title",), ("Title", "A"), ("Title", "A")]
    assert [passage.headings for passage in cut_passages(document(*blocks))] == places
    assert [passage.headings for passage in cut_passages(document(*blocks, title=""))] == [(), ("A",), ("Title", "A")]


def test_tables_and_lists_are_cut_between_lines() -> None:
    rows = [f"row {number} | {'word. ' * 10}end" for number in range(12)]
    for kind, head in (("table", "name | text"), ("list", "- first")):
        passages = cut_passages(document(Block(kind, "\n".join([head, *rows]), ())))
        lines = [passage.text.split("\n") for passage in passages]
        assert len(lines) > 2
        assert [each[0] == head for each in lines] == [True] + [kind == "table"] * (len(lines) - 1)
        assert [line for each in lines for line in each if line != head] == rows
        assert all(len(passage.text) <= MAX_CHARACTERS for passage in passages)
    assert sizes(Block("table", "name | text\n" + "word " * 200, ()))[0] <= MAX_CHARACTERS


@given(st.lists(BLOCKS, max_size=8))
def test_every_character_is_in_one_passage(blocks: list[Block]) -> None:
    passages = cut_passages(document(*blocks))
    expected = "".join("".join(block.text.split()) for block in blocks if block.kind != "heading")
    assert "".join("".join(passage.text.split()) for passage in passages) == expected
    assert all(0 < len(passage.text) <= MAX_CHARACTERS for passage in passages)
