"""Charts drawn by processes of their own."""

import altair as alt
import pandas as pd
import pytest
import vl_convert

from train.rendering import drawn


def chart(title):
    frame = pd.DataFrame({"depth": [1, 2, 4], "accuracy": [0.9, 0.8, 0.1]})
    return alt.Chart(frame, title=title).mark_line().encode(x="depth:Q", y="accuracy:Q").to_dict()


@pytest.mark.parametrize("num_processes", [1, 2, 5])
def test_charts_are_what_the_converter_makes_of_them(num_processes):
    specs = {name: chart(name * 3) for name in "abc"}
    found = dict(drawn(specs, num_processes=num_processes))
    assert sorted(found) == ["a", "b", "c"]
    for name, drawing in found.items():
        assert drawing.svg.decode() == vl_convert.vegalite_to_svg(specs[name])
        assert drawing.png == vl_convert.svg_to_png(drawing.svg.decode(), scale=2.0)
    assert not dict(drawn({}, num_processes=2))


def test_a_chart_that_cannot_be_drawn_says_why():
    with pytest.raises(RuntimeError, match=r"(?s)could not be drawn: .*Vega-Lite"):
        dict(drawn({"good": chart("good"), "bad": {"mark": "none such", "data": 3}}, num_processes=2))
