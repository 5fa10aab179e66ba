"""Runs saved CoreML packages in torch: what their weights and their structure compute, without a Mac.

::

    package.py      .mlpackage -> MilProgram (read back with coremltools' milproto)
    program.py      MilProgram: one operation after the other
    table.py        every operator that is known, by its MIL name
      arithmetic.py   one number in, one number out
      arrangement.py  reshape, slice, gather, concatenate, state
      layers.py       convolutions, products, pooling, norms, sums
      weights.py      stored weights made whole, activations in 8 bits
    engine.py       a bundle's CoreML graphs behind the runtime's Engine interface

It proves that the package on disk holds the right weights, in the right order, under the right operators. It does not
prove how a device rounds: the neural engine, the GPU and the CPU of an Apple device each sum in an order and a
precision of their own. That only a device can show; `pocketlens.export.xctest` writes the test that runs there.
"""

__all__: list[str] = []
