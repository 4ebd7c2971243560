// What a person means by DISK in `strata attach DISK`:
//
//   nbd://...  nbd+unix://...    an export of any NBD server
//   a file                       that image: from the daemon that serves it as its top, or from one of its
//   own a name                       a device or a daemon among those of 'strata serve'; with --control, of
//   that one
//
// A file goes before a name; a word with a slash is always a file.

import { existsSync } from "node:fs";
import path from "node:path";
import { BlockError } from "../../base/errors.ts";
import type { ControlEnvironment } from "../control-directory.ts";
import { controlDirectory, findDaemon, runningDaemons, socketsOf } from "../control-directory.ts";
import { type DaemonView, type DeviceView, deviceOfImage, viewDaemon } from "../daemon-view.ts";
import { usageError } from "../failure.ts";
import { statedFormat } from "../open-image.ts";
import { QmpClient } from "../qmp-client.ts";
import type { AttachRecord } from "./attach-record.ts";
import { startDaemon } from "./background-daemon.ts";

export interface SourcePlan {
  readonly disk: string;
  readonly format: string | undefined;
  readonly readOnly: boolean;
  readonly control: string | undefined;
  /** Directories beside its own in which the images of a disk may name files. */
  readonly backingRoots?: readonly string[] | undefined;
  readonly environment: ControlEnvironment;
  /** Where the daemon's control socket has to stand, if one is started; otherwise anywhere. */
  readonly qmp?: string | undefined;
  checkInterrupt(): void;
}

export interface DiskSource {
  readonly uri: string;
  /** The daemon that was started for it. */
  readonly started?: AttachRecord;
  /** QMP socket of the daemon that serves it, where that is known. */
  readonly qmp?: string;
}

/** @throws BlockError that says what there is; a daemon that did not get ready is gone then */
export async function findSource(plan: SourcePlan): Promise<DiskSource> {
  const { disk, format, control } = plan;
  if (/^[a-z+]+:\/\//i.test(disk)) {
    if (format !== undefined) throw usageError("--format is for image files: an NBD export has none");
    return { uri: disk };
  }
  if (control !== undefined) return deviceOfDaemon(disk, (await findDaemon(control, plan.environment)).qmp);
  if (existsSync(disk)) return imageSource(plan);
  if (disk.includes("/")) throw new BlockError("ENOENT", `there is no image '${disk}'`);
  return namedSource(disk, plan.environment);
}

async function imageSource(plan: SourcePlan): Promise<DiskSource> {
  // Says what is wrong with a directory, or a raw disk that is not stated to be one.
  const format = statedFormat(plan.disk, plan.format);
  for (const { qmp, view } of await daemons(plan.environment)) {
    const device = deviceOfImage(view, plan.disk);
    if (device?.uri !== undefined) return { uri: device.uri, qmp };
  }
  const started = await startDaemon({ ...plan, format });
  return { uri: started.uri, started, qmp: started.qmp };
}

async function namedSource(name: string, environment: ControlEnvironment): Promise<DiskSource> {
  const running = await daemons(environment);
  const found = running.flatMap(({ daemon, qmp, view }) =>
    view.devices
      .filter((device) => isCalled(device, name) || (daemon === name && view.devices.length === 1))
      .map((device) => ({ daemon, qmp, uri: uriOf(device) })),
  );
  if (found.length === 1) return { uri: found[0]!.uri, qmp: found[0]!.qmp };
  const there = running.flatMap(({ daemon, view }) => view.devices.map((one) => `${one.name} of ${daemon}`));
  if (found.length > 1) {
    const which = found.map(({ daemon }) => daemon).join(", ");
    throw new BlockError(
      "EINVAL",
      `several daemons serve '${name}': say which with --control NAME (${which})`,
    );
  }
  const others = there.length === 0 ? "no daemon runs" : `served are ${there.join(", ")}`;
  throw new BlockError(
    "ENOENT",
    `'${name}' is no image file and nothing that is served (${others}): name a file, an NBD URI, or a device`,
  );
}

async function deviceOfDaemon(name: string, qmp: string): Promise<DiskSource> {
  const { devices } = await viewAt(qmp);
  const device = devices.find((one) => isCalled(one, name));
  if (device !== undefined) return { uri: uriOf(device), qmp };
  const there = devices.map((one) => one.name).join(", ") || "(nothing)";
  throw new BlockError("DEVICE_NOT_FOUND", `the daemon at '${qmp}' serves no '${name}': there is ${there}`);
}

function isCalled(device: DeviceView, name: string): boolean {
  return device.name === name || device.id === name;
}

function uriOf(device: DeviceView): string {
  if (device.uri !== undefined) return device.uri;
  throw new BlockError(
    "EINVAL",
    `'${device.name}' is served, but its daemon does not say where: name an NBD URI`,
  );
}

async function daemons(
  environment: ControlEnvironment,
): Promise<{ daemon: string; qmp: string; view: DaemonView }[]> {
  const directory = controlDirectory(environment);
  const found: { daemon: string; qmp: string; view: DaemonView }[] = [];
  for (const daemon of await runningDaemons(directory)) {
    const { qmp } = socketsOf(path.join(directory, `${daemon}.qmp`));
    const view = await viewAt(qmp).catch(() => undefined);
    // One that ended in the meantime serves nothing.
    if (view !== undefined) found.push({ daemon, qmp, view });
  }
  return found;
}

async function viewAt(qmp: string): Promise<DaemonView> {
  const client = await QmpClient.connect(qmp);
  try {
    return await viewDaemon(client);
  } finally {
    client.close();
  }
}
