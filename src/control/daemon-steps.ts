// Carries out the options of the command line on a daemon.

import { BlockError, errorMessage } from "../base/errors.ts";
import { parseChardevOption } from "./chardev/options.ts";
import { addExport, startNbdServer } from "./commands/exports.ts";
import type { Daemon } from "./daemon.ts";
import type { Step } from "./daemon-options.ts";
import { HmpMonitor } from "./hmp/monitor.ts";
import { parseKeyval, parseOption } from "./keyval.ts";
import { adaptNodeOptions } from "./node-options.ts";
import { duplicateObject } from "./objects.ts";
import { blockdevOptions } from "./qapi/block.ts";
import { exportOptions, nbdServerOptions } from "./qapi/export.ts";
import { objectOptions } from "./qapi/object.ts";
import { bool, enumeration, type Infer, type QapiType, str, struct } from "./qapi/types.ts";
import { visit } from "./qapi/visitor.ts";
import { QmpMonitor } from "./qmp-monitor.ts";

const monitorOptions = struct("MonitorOptions", "A monitor on a character device.", {
  "?id": str,
  "?mode": enumeration("MonitorMode", ["readline", "control"]),
  "?pretty": bool,
  chardev: str,
});

/** Carries out one option. @throws BlockError with the option in front of the reason */
export async function runStep(daemon: Daemon, step: Step): Promise<void> {
  try {
    await STEPS[step.option](daemon, step.argument);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new BlockError(error.code, `--${step.option} ${step.argument}: ${errorMessage(error)}`, error);
  }
}

function read<T extends QapiType>(type: T, text: string, impliedName?: string): Infer<T> {
  const { value, isKeyval } = parseOption(text, impliedName);
  return visit(type, value, isKeyval);
}

const STEPS: Readonly<Record<Step["option"], (daemon: Daemon, text: string) => unknown>> = {
  blockdev: (daemon, text) =>
    daemon.nodes.add(adaptNodeOptions(read(blockdevOptions, text, "driver"), daemon.logger)),
  chardev: (daemon, text) => {
    const { id, backend } = parseChardevOption(text);
    if (daemon.chardevs.has(id)) throw duplicateObject(id);
    return daemon.chardevs.add(id, backend);
  },
  export: (daemon, text) => addExport(daemon, read(exportOptions, text, "type")),
  monitor: (daemon, text) => addMonitor(daemon, read(monitorOptions, text, "chardev")),
  "nbd-server": (daemon, text) => {
    const { addr, ...rest } = read(nbdServerOptions, text);
    const { type, ...data } = addr;
    return startNbdServer(daemon, { ...rest, addr: { type, data } } as Parameters<typeof startNbdServer>[1]);
  },
  object: (daemon, text) => daemon.objects.add(read(objectOptions, text, "qom-type")),
};

function addMonitor(daemon: Daemon, options: Infer<typeof monitorOptions>): void {
  if (options.mode === "readline") {
    if (options.pretty !== undefined) {
      throw new BlockError("EINVAL", "'pretty' is not compatible with HMP monitors");
    }
    daemon.chardevs.attach(options.chardev, new HmpMonitor(daemon));
    return;
  }
  daemon.chardevs.attach(options.chardev, new QmpMonitor(daemon, { pretty: options.pretty ?? false }));
}

/** What `--object help` and `--object TYPE,help` say; undefined when no help is asked for. */
export function objectHelp(text: string): string | undefined {
  if (text.startsWith("{")) return undefined;
  if (text === "help" || text === "?") {
    const types = objectOptions.base.members[0]!.type as QapiType & { readonly values: readonly string[] };
    return `List of user creatable objects:\n${types.values.map((name) => `  ${name}\n`).join("")}`;
  }
  const { value, help } = parseKeyval(text, "qom-type");
  if (!help) return undefined;
  const type = String(value["qom-type"]);
  const branch = objectOptions.branches[type];
  if (branch === undefined) {
    throw new BlockError("EINVAL", `--object ${text}: Parameter 'qom-type' does not accept value '${type}'`);
  }
  const lines = branch.members.map(({ name, type: { name: kind } }) => `  ${name}=<${kind}>\n`);
  return `${type} options:\n${lines.sort().join("")}`;
}
