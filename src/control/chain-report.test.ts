import { expect, it } from "vitest";
import { Prng } from "../base/prng.ts";
import { type Extent, ExtentKind, ExtentList } from "../block/extent.ts";
import { type LayerReport, tally } from "./chain-report.ts";

const { DATA, ZERO, UNALLOCATED } = ExtentKind;

function emptyLayer(): LayerReport {
  return {
    "node-name": "",
    filename: "",
    driver: "qcow2",
    "read-only": false,
    "virtual-size": 0,
    "actual-size": 0,
    data: 0,
    seen: 0,
    shadows: 0,
    cells: [{ data: 0, seen: 0 }],
  };
}

/** Layers top first, one kind per byte. */
function tallied(kinds: readonly (readonly ExtentKind[])[]): LayerReport[] {
  const layers = kinds.map(emptyLayer);
  tally(kinds.map(extents), layers, 0);
  return layers;
}

function extents(kinds: readonly ExtentKind[]): Extent[] {
  const list = new ExtentList(1000);
  for (const kind of kinds) list.push(1, kind, -1, false);
  return list.extents;
}

it("counts what the head of the file draws", () => {
  const layers = tallied([
    [DATA, UNALLOCATED, ZERO, UNALLOCATED, UNALLOCATED],
    [DATA, DATA, UNALLOCATED, UNALLOCATED, UNALLOCATED],
    [UNALLOCATED, UNALLOCATED, DATA, DATA, UNALLOCATED],
  ]);
  const figures = layers.map(({ data, seen, shadows, cells }) => ({ data, seen, shadows, cells }));
  expect(figures).toEqual([
    { data: 1, seen: 1, shadows: 2, cells: [{ data: 1, seen: 1 }] },
    { data: 2, seen: 1, shadows: 0, cells: [{ data: 2, seen: 1 }] },
    { data: 2, seen: 1, shadows: 0, cells: [{ data: 2, seen: 1 }] },
  ]);
});

it("does not count as shadowed what a layer of zeros hid already", () => {
  const [top, middle, base] = tallied([[DATA], [ZERO], [DATA]]);
  expect([top!.shadows, middle!.shadows, base!.seen]).toEqual([0, 1, 0]);
});

it("agrees with a naive count on random chains", () => {
  for (let seed = 1; seed <= 200; seed++) {
    const prng = new Prng(seed);
    const depth = prng.between(1, 6);
    const bytes = prng.between(1, 40);
    const kinds = Array.from({ length: depth }, () =>
      Array.from({ length: bytes }, () => prng.pick([DATA, ZERO, UNALLOCATED])),
    );
    const layers = tallied(kinds);
    kinds.forEach((own, layer) => {
      const seen = own.filter(
        (kind, at) => kind === DATA && kinds.slice(0, layer).every((above) => above[at] === UNALLOCATED),
      ).length;
      const shadows = own.filter((kind, at) => {
        const below = kinds.slice(layer + 1).find((other) => other[at] !== UNALLOCATED)?.[at];
        return kind !== UNALLOCATED && below === DATA;
      }).length;
      const wanted = { data: own.filter((kind) => kind === DATA).length, seen, shadows };
      const { data, seen: gotSeen, shadows: gotShadows } = layers[layer]!;
      expect({ data, seen: gotSeen, shadows: gotShadows }, `seed ${seed}, layer ${layer}`).toEqual(wanted);
    });
  }
});
