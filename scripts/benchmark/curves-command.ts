// `scripts/bench curves`: what Strata's cost per request does not depend on.

import os from "node:os";
import { machineLine, writeJson } from "./compare-command.ts";
import { CURVES, type MeasuredPoint, measureCurve } from "./curves.ts";
import { curveLines, uptimeLines } from "./curves-table.ts";
import { fileSystemType, withFolder } from "./place.ts";
import { measureUptime, type UptimePoint } from "./uptime.ts";

export interface CurvesOptions {
  readonly rounds: number;
  readonly seconds: number;
  readonly uptime: number;
  readonly every: number;
  readonly only?: RegExp;
  readonly folder: string;
  readonly json?: string;
}

interface Result {
  curves: Record<string, MeasuredPoint[]>;
  uptime?: UptimePoint[];
}

export async function curvesCommand(options: CurvesOptions): Promise<void> {
  const fileSystem = fileSystemType(options.folder);
  console.log(machineLine(options.folder, fileSystem));
  const { rounds, seconds, uptime, every, only } = options;
  const isAsked = (name: string) => only?.test(name) ?? true;
  const result: Result = { curves: {} };
  for (const curve of CURVES.filter(({ name }) => isAsked(name))) {
    const points = await withFolder(options.folder, (folder) =>
      measureCurve(curve.points(folder), { folder, rounds, seconds }),
    );
    result.curves[curve.name] = points;
    console.log(curveLines(curve.name, points).join("\n"));
  }
  if (isAsked("uptime")) {
    result.uptime = await withFolder(options.folder, (folder) =>
      measureUptime({ folder, seconds, uptime, every }),
    );
    console.log(uptimeLines(result.uptime).join("\n"));
  }
  if (options.json === undefined) return;
  const machine = { cpus: os.cpus().length, model: os.cpus()[0]?.model, linux: os.release() };
  const head = { rounds, seconds, fileSystem, machine, node: process.version };
  writeJson(options.json, { ...head, ...result });
}
