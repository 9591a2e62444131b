"""Counts as bars and histograms."""

from tasks.evaluation import bars


def test_the_widest_bar_is_whole_and_shares_add_up() -> None:
    found = bars.bars([30, 15, 0, 5])
    assert [bar.width for bar in found] == [100, 50, 0, 16.67]
    assert [bar.share for bar in found] == [0.6, 0.3, 0, 0.1]


def test_nothing_at_all() -> None:
    assert bars.bars([]) == []
    assert bars.bars([0])[0] == bars.Bar(0, 0, 0)
    assert bars.histograms({}) == []


def test_columns_share_their_rows() -> None:
    found = bars.table({"train": {"a": 4, "b": 2}, "test": {"b": 1, "c": 1}})
    assert [name for name, _ in found] == ["a", "b", "c"]
    assert [[bar.rows for bar in columns] for _, columns in found] == [[4, 0], [2, 1], [0, 1]]


def test_histograms_share_their_scale_and_stay_inside() -> None:
    train, test = bars.histograms({"train": {16: 30, 32: 8, 80: 2}, "test": {32: 8}})
    assert (train.rows, test.rows) == (40, 8)
    assert [rect.x for rect in train.bars][1] == test.bars[0].x
    assert train.bars[0].text == "1 to 16 tokens: 30 rows"
    assert train.bars[2].text == "65 to 80 tokens: 2 rows"
    assert train.bars[0].height > train.bars[1].height > train.bars[2].height
    for rect in (*train.bars, *test.bars):
        assert rect.x >= bars.LEFT
        assert rect.x + rect.width <= bars.WIDTH - bars.RIGHT + bars.GAP
        assert rect.y >= bars.TOP
        assert rect.y + rect.height <= bars.HEIGHT - bars.BOTTOM + 0.1
    assert [tick.text for tick in train.ticks_y] == ["0", "10", "20", "30"]
    assert [tick.text for tick in train.ticks_x] == ["0", "20", "40", "60", "80"]


def test_one_bin() -> None:
    (found,) = bars.histograms({"test": {64: 3}})
    assert found.bars[0].text == "1 to 64 tokens: 3 rows"


def test_an_empty_bin_is_not_drawn() -> None:
    (found,) = bars.histograms({"test": {8: 0, 16: 3}})
    assert len(found.bars) == 1
