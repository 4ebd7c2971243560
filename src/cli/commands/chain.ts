import { existsSync } from "node:fs";
import path from "node:path";
import type { Command } from "commander";
import { type ChainReport, reportChain } from "../../control/chain-report.ts";
import { drawChain, type JobLine } from "../chain-picture.ts";
import { type CommandContext, examples } from "../command-context.ts";
import { findDaemon } from "../control-directory.ts";
import { deviceOf, findNode, type JobView, viewDaemon, viewJobs } from "../daemon-view.ts";
import { usageError } from "../failure.ts";
import { nodeNamesFor } from "../node-names.ts";
import { withImage } from "../open-image.ts";
import { QmpClient } from "../qmp-client.ts";

interface ChainFlags {
  readonly format?: string;
  readonly json?: boolean;
  readonly control?: string;
  readonly forceShare?: boolean;
}

/** A chain, where it is served, and the jobs on it. */
interface Chain {
  readonly device: string | undefined;
  readonly report: ChainReport;
  readonly jobs: readonly JobView[];
}

export function addChain(program: Command, context: CommandContext): void {
  program
    .command("chain [disk]")
    .description("draw a chain: sizes, what each image holds and hides, running jobs")
    .option("-f, --format <format>", "qcow2 or raw; otherwise by the image's first bytes")
    .option("--json", "the figures as JSON")
    .option("--control <control>", "ask this daemon; DISK is a device, node or file of it then")
    .option("-U, --force-share", "also while another process writes to it; what is told may be out of date")
    .addHelpText(
      "after",
      examples("strata chain overlay.qcow2", "strata chain", "strata chain virtio0 --json") +
        "\nA DISK that is a file is read as it stands; otherwise a running daemon is asked.\n",
    )
    .action(async (disk: string | undefined, flags: ChainFlags) => {
      const offline = disk !== undefined && flags.control === undefined && existsSync(disk);
      const chain = offline ? await chainOfFile(disk, flags) : await chainOfDaemon(disk, flags, context);
      if (flags.json === true) context.terminal.out(JSON.stringify(chain, undefined, 2) + "\n");
      else context.terminal.out(picture(chain, context.terminal.columns));
    });
}

async function chainOfFile(disk: string, flags: ChainFlags): Promise<Chain> {
  const report = await withImage(disk, flags, reportChain);
  const names = nodeNamesFor(report.layers.map((layer) => layer.filename));
  const layers = report.layers.map((layer, at) => ({ ...layer, "node-name": names[at]! }));
  return { device: undefined, report: { ...report, layers }, jobs: [] };
}

async function chainOfDaemon(
  name: string | undefined,
  flags: ChainFlags,
  context: CommandContext,
): Promise<Chain> {
  if (flags.format !== undefined) throw usageError("--format is for a DISK that is a file");
  const { qmp } = await findDaemon(flags.control, context.environment);
  const client = await QmpClient.connect(qmp);
  try {
    const view = await viewDaemon(client);
    const node = findNode(view, name);
    const report = (await client.execute("x-strata-query-chain", {
      device: node["node-name"],
    })) as ChainReport;
    return { device: deviceOf(view, node), report, jobs: await viewJobs(client) };
  } finally {
    client.close();
  }
}

function picture({ device, report, jobs }: Chain, columns: number): string {
  const layers = report.layers.map((layer) => ({ ...layer, filename: shortest(layer.filename) }));
  const lines: JobLine[] = jobs.map((job) => ({
    id: job.device,
    type: job.type,
    status: job.status,
    done: job.offset,
    total: job.len,
    speed: job.speed,
    node: undefined,
  }));
  return drawChain({ device, report: { ...report, layers }, jobs: lines }, columns);
}

/** Relative to where the user stands, where that is shorter. */
function shortest(filename: string): string {
  const relative = path.relative("", filename);
  return relative !== "" && relative.length < filename.length ? relative : filename;
}
