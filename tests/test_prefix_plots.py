"""The figures of a prefix hold what they are given."""

from helpers.prefix_plots import nearest_words


def test_nearest_words_are_drawn_in_order_and_darker_when_nearer() -> None:
    near = [[("dog", 0.9), ("cat", 0.4)], [("runs", 0.2), ("sits", 0.1)], [("grass", 0.7), ("snow", 0.3)]]
    figure = nearest_words({"learned": near, "another": near[:1]})
    first, second = figure.axes
    assert [text.get_text() for text in first.texts] == ["dog", "cat", "runs", "sits", "grass", "snow"]
    assert [text.get_text() for text in second.texts] == ["dog", "cat"]
    assert first.get_title("left") == "learned" or first.get_title() == "learned"
    blues = [1 - patch.get_facecolor()[0] for patch in first.patches]  # red falls as the cell gets darker
    assert blues[0] > blues[4] > blues[1] > blues[5] > blues[2] > blues[3]
    assert first.get_xlim() == second.get_xlim()
    figure.savefig("/dev/null", format="png")
