import { describe, expect, it } from "vitest";
import { assertMove, checkVerb, type JobStatus, type JobVerb } from "./states.ts";

// The tables of QEMU's job.c (JobSTT and JobVerbTable of 10.0), written out again and compared cell by cell.
const ORDER: readonly JobStatus[] = [
  "undefined",
  "created",
  "running",
  "paused",
  "ready",
  "standby",
  "waiting",
  "pending",
  "aborting",
  "concluded",
  "null",
];

//                                U  C  R  P  Y  S  W  D  X  E  N
const MOVES: Record<JobStatus, number[]> = {
  undefined: /*            */ [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
  created: /*              */ [0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 1],
  running: /*              */ [0, 0, 0, 1, 1, 0, 1, 0, 1, 0, 0],
  paused: /*               */ [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
  ready: /*                */ [0, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0],
  standby: /*              */ [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
  waiting: /*              */ [0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0],
  pending: /*              */ [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0],
  aborting: /*             */ [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0],
  concluded: /*            */ [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
  null: /*                 */ [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
};

const VERBS: Record<JobVerb, number[]> = {
  cancel: /*               */ [0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
  pause: /*                */ [0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
  resume: /*               */ [0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
  "set-speed": /*          */ [0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
  complete: /*             */ [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0],
  finalize: /*             */ [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
  dismiss: /*              */ [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0],
  change: /*               */ [0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
};

describe("which status may follow which", () => {
  for (const from of ORDER) {
    it(`${from}`, () => {
      ORDER.forEach((to, at) => {
        const move = () => assertMove(from, to);
        if (MOVES[from][at] === 1) expect(move).not.toThrow();
        else expect(move).toThrow(`a job does not go from ${from} to ${to}`);
      });
    });
  }
});

describe("which verb is allowed in which status", () => {
  for (const verb of Object.keys(VERBS) as JobVerb[]) {
    it(`${verb}`, () => {
      ORDER.forEach((status, at) => {
        const apply = () => checkVerb("job0", status, verb);
        if (VERBS[verb][at] === 1) expect(apply, status).not.toThrow();
        else
          expect(apply, status).toThrow(
            `Job 'job0' in state '${status}' cannot accept command verb '${verb}'`,
          );
      });
    });
  }
});
