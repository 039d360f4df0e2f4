"""Spark, Dask and Daft on this machine, with one interface for tests: frames of columns, and columns of frames."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class Host(ABC):
    """An engine: makes frames of columns, and gives their columns back in the order of the column ``id``."""

    add_columns: Any
    #: Whether a job survives the loss of a worker. One that does not ends with an error.
    survives = True
    #: Options of add_columns for which the engine uses processes of its own.
    in_processes: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def frame(self, **columns: list[Any]) -> Any: ...

    @abstractmethod
    def columns(self, frame: Any) -> dict[str, list[Any]]: ...

    def without_rows(self, frame: Any) -> Any:
        return frame.where(frame["id"] < 0)


class Spark(Host):
    def __init__(self) -> None:
        from pyspark.sql import SparkSession

        from stonnx.integrations.spark import add_columns

        os.environ["PYSPARK_PYTHON"] = sys.executable
        # Two workers, and three attempts for a task.
        builder = SparkSession.builder.master("local[2, 3]").config("spark.ui.enabled", "false")
        self.session = builder.config("spark.driver.bindAddress", "127.0.0.1").getOrCreate()
        self.session.sparkContext.setLogLevel("OFF")
        self.add_columns = add_columns

    def frame(self, **columns: list[Any]) -> Any:
        kinds = {
            name: "int" if all(isinstance(v, int) for v in column) else "string" for name, column in columns.items()
        }
        rows = list(zip(*columns.values(), strict=True))
        schema = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        return self.session.createDataFrame(rows, schema).repartition(2)

    def columns(self, frame: Any) -> dict[str, list[Any]]:
        rows = sorted(frame.collect(), key=lambda row: row["id"])
        return {name: [row[name] for row in rows] for name in frame.columns}

    def close(self) -> None:
        self.session.stop()


class Dask(Host):
    def __init__(self) -> None:
        from distributed import Client, LocalCluster

        from stonnx.integrations.dask import add_columns

        self.cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
        self.client = Client(self.cluster)
        self.add_columns = add_columns

    def frame(self, **columns: list[Any]) -> Any:
        import dask.dataframe
        import pandas as pd

        return dask.dataframe.from_pandas(pd.DataFrame(columns), npartitions=2)

    def columns(self, frame: Any) -> dict[str, list[Any]]:
        import pandas as pd

        table = frame.compute().sort_values("id")
        return {name: [None if value is pd.NA else value for value in table[name]] for name in table.columns}

    def without_rows(self, frame: Any) -> Any:
        return frame[frame["id"] < 0]

    def close(self) -> None:
        self.client.close()
        self.cluster.close()


class Daft(Host):
    survives = False
    in_processes = MappingProxyType({"use_process": True})

    def __init__(self) -> None:
        from stonnx.integrations.daft import add_columns

        self.add_columns = add_columns

    def frame(self, **columns: list[Any]) -> Any:
        import daft

        return daft.from_pydict(columns)

    def columns(self, frame: Any) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = frame.sort("id").to_pydict()
        return columns

    def close(self) -> None:
        pass
