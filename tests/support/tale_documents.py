"""Small documents for tests: stories and chapters about invented things, with headings, lists and tables."""

from __future__ import annotations

from nanochat.documents.document import Block, Document

_NAMES = "Abena Bokor Chima Dembe Esi Farai Gamba Hadiza Imani Jabari Kofi Lindiwe".split()
_PLACES = "market river forest harbour mountain desert village castle garden island valley bridge".split()
_TOOLS = "hammer kettle ladder lantern basket anchor compass shovel mirror needle barrel candle".split()
_COLOURS = "red blue green yellow purple orange brown silver golden white black grey".split()


def story(index: int, split: str = "train") -> Document:
    """A story of a dozen sentences about one of twelve people, all words of it determined by `index`."""
    name, place, tool, colour = (words[index % 12] for words in (_NAMES, _PLACES, _TOOLS, _COLOURS))
    number = index // 12
    other = _NAMES[(index + 5) % 12]
    title = f"{name} and the {colour} {tool}" + (f" {number}" if number else "")
    text = (
        f"{name} was a clever child from the {place} of house {index}. She had a {colour} {tool} of number {index}. "
        f"One day she lost the {tool}. {name} searched the {place} with the lamp of house {index}. "
        f'"I have seen your {tool} in tree {index}," said {other}. They were happy. '
        f"When {other} climbed the tree {index}, the {tool} fell into the grass. They laughed and said nothing. "
        f"{other} carried the {colour} {tool} to house {index}. They went home and slept in house {index}."
    )
    blocks = (Block("heading", title, (), level=1), Block("paragraph", text, (title,)))
    return Document(f"stories/{index:03}.md", title, blocks).with_split(split)


def chapter(index: int, split: str = "train") -> Document:
    """A chapter with two sections, a list and a table."""
    place, tool = _PLACES[index % 12].capitalize(), _TOOLS[index % 12]
    title = f"{place} guide {index}"
    above = (title, f"The {tool} of guide {index}")
    blocks = (
        Block("heading", title, (), level=1),
        Block("paragraph", f"The {place.lower()} guide {index} is for visitors with little time.", (title,)),
        Block("heading", above[1], (title,), level=2),
        Block("paragraph", f"A {tool} {index} is a device that helps visitors of guide {index} find the way.", above),
        Block("paragraph", f"If the {tool} {index} is lost, visitors of guide {index} ask at the office.", above),
        Block("list", "- a map\n- a coat", above, items=(f"a map of {index}", f"a coat of {index}")),
        Block("heading", f"Prices of guide {index}", (title,), level=2),
        Block("paragraph", f"Prices of guide {index} have been the same for ten years.", (title, "Prices")),
        Block("table", "", (title, "Prices"), rows=(("Ticket", "Price"), (f"child {index}", f"{index} coins"))),
    )
    return Document(f"guides/{index:03}.md", title, blocks).with_split(split)


def documents(count: int = 24) -> list[Document]:
    """Stories and chapters in turn; every sixth is for validation."""
    return [(story if index % 2 else chapter)(index, "val" if index % 6 == 5 else "train") for index in range(count)]
