"""An axis of very many names writes few of them, and draws all the data."""

import time

import altair as alt
import numpy as np
import pandas as pd
import pytest
import vl_convert
import xarray as xr

from train.crowded import thinned
from train.report import write_report


def names(number):
    return pd.DataFrame({"name": [f"n{each:05d}" for each in range(number)], "value": np.arange(number) % 7})


def chart(number):
    return alt.Chart(names(number)).mark_tick().encode(x="name:N", y="value:O")


def spec_of(drawn):
    with alt.data_transformers.disable_max_rows():
        return thinned(drawn.to_dict())


BUILT = {
    "alone": lambda crowded: crowded,
    "layered": lambda crowded: crowded + crowded.mark_point(),
    "beside another": lambda crowded: chart(3) | crowded,
    "in rows": lambda crowded: crowded.facet(row="value:O"),
}


@pytest.mark.parametrize("build", BUILT.values(), ids=BUILT)
def test_a_crowded_axis_writes_few_names_and_keeps_all_data(build):
    drawn = build(chart(1000))
    svg = vl_convert.vegalite_to_svg(spec_of(drawn), allowed_base_urls=[])
    written = {text for text in svg.split(">") if text.startswith("n0")}
    assert 30 <= len(written - {"n00001</text", "n00002</text"}) <= 40
    assert svg.count('aria-roledescription="tick"') >= 1000
    width = float(svg.split('width="')[1].split('"')[0])
    assert width < 1200  # not 20 pixels a name


def test_what_can_be_read_is_left_as_it_is():
    drawn = chart(200)
    assert spec_of(drawn) == drawn.to_dict()
    own = chart(1000).encode(x=alt.X("name:N", axis=alt.Axis(values=["n00007"]))).properties(width=300)
    assert spec_of(own)["encoding"]["x"]["axis"] == {"values": ["n00007"]}
    assert spec_of(own)["width"] == 300
    hidden = chart(1000).encode(x=alt.X("name:N", axis=None))
    assert spec_of(hidden)["encoding"]["x"]["axis"] is None


class Study:
    """Ten thousand names."""

    figures = staticmethod(lambda result: {"all": chart(10_000)})
    findings = staticmethod(lambda result: ["There are many."])
    tables = staticmethod(lambda result: {"all": names(10_000)})


def test_a_report_of_ten_thousand_names_takes_seconds(tmp_path):
    started = time.process_time()
    path = write_report(xr.Dataset(), Study, tmp_path)
    assert time.process_time() - started < 10.0  # 26 s for the figure alone where every name is written
    assert path.read_text(encoding="utf-8").count("n09999") >= 2  # in the table and in the figure's data
