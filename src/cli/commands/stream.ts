import type { Command } from "commander";
import { formatSize, parseSize } from "../../base/units.ts";
import { type CommandContext, examples } from "../command-context.ts";
import { findDaemon } from "../control-directory.ts";
import { type DaemonView, deviceOf, findNode, jobIdFor, viewDaemon } from "../daemon-view.ts";
import { EXIT_CODES } from "../exit-codes.ts";
import { ExitRequest, usageError } from "../failure.ts";
import { type JobEnd, watchJob } from "../job-watch.ts";
import { QmpClient } from "../qmp-client.ts";

interface StreamFlags {
  readonly base?: string;
  readonly speed?: string;
  readonly id?: string;
  readonly onError?: string;
  readonly json?: boolean;
  readonly wait: boolean;
  readonly control?: string;
}

const ON_ERROR = ["report", "ignore", "stop", "enospc"];

export function addStream(program: Command, context: CommandContext): void {
  program
    .command("stream [top]")
    .description("merge images into TOP while the guest works: afterwards TOP stands on BASE, or on nothing")
    .option(
      "-b, --base <image>",
      "image that stays below, by node or file name; without it everything is merged",
    )
    .option("--speed <bytes>", "bytes per second at the most, such as 50M")
    .option("--id <id>", "id of the job; otherwise stream-NODE")
    .option("--on-error <policy>", "report, ignore, stop or enospc")
    .option("--json", "progress as one JSON object per second")
    .option("--no-wait", "start the job and leave")
    .option("--control <control>", "the daemon, where several run: its name or the path of its QMP socket")
    .addHelpText(
      "after",
      examples(
        "strata stream",
        "strata stream virtio0 --base A",
        "strata stream node-D --base file-B.img --speed 50M",
      ) + "\nCtrl-C ends the display; the job goes on. Cancel it with 'strata jobs cancel ID'.\n",
    )
    .action(async (top: string | undefined, flags: StreamFlags) => {
      const { qmp } = await findDaemon(flags.control, context.environment);
      const client = await QmpClient.connect(qmp);
      try {
        await stream(client, top, flags, context);
      } finally {
        client.close();
      }
    });
}

async function stream(
  client: QmpClient,
  top: string | undefined,
  flags: StreamFlags,
  context: CommandContext,
): Promise<void> {
  const { terminal, clock, onInterrupt } = context;
  const view = await viewDaemon(client);
  const args = streamArguments(view, top, flags);
  const { id, label } = args;
  const start = () => client.execute("block-stream", args.members);
  const json = flags.json === true;
  if (!flags.wait) {
    await start();
    terminal.out(json ? JSON.stringify({ id }) + "\n" : `job ${id} runs; see it with 'strata jobs'\n`);
    return;
  }
  const end = await watchJob({ client, id, label, terminal, clock, json, onInterrupt }, start);
  leave(end, id);
}

/** The end of a watched job as exit code and message. */
export function leave(end: JobEnd, id: string): void {
  switch (end.result) {
    case "completed":
      return;
    case "failed":
      throw new ExitRequest(
        EXIT_CODES.JOB_FAILED.code,
        `job ${id} failed: ${end.error}; the chain is as it was`,
      );
    case "cancelled":
      throw new ExitRequest(EXIT_CODES.JOB_CANCELLED.code, `job ${id} was cancelled; the chain is as it was`);
    case "unwatched":
      throw new ExitRequest(
        EXIT_CODES.INTERRUPTED.code,
        `job ${id} goes on in the daemon: 'strata jobs watch ${id}' shows it, 'strata jobs cancel ${id}' ends it`,
      );
  }
}

function streamArguments(view: DaemonView, top: string | undefined, flags: StreamFlags) {
  const node = findNode(view, top);
  const name = node["node-name"];
  const id = flags.id ?? jobIdFor("stream", name);
  const base = flags.base === undefined ? undefined : findNode(view, flags.base)["node-name"];
  const members: Record<string, unknown> = { "job-id": id, device: name };
  if (base !== undefined) members["base-node"] = base;
  if (flags.speed !== undefined) members["speed"] = speedOf(flags.speed);
  if (flags.onError !== undefined) members["on-error"] = policyOf(flags.onError);
  const into = deviceOf(view, node) ?? name;
  return { id, members, label: base === undefined ? `into ${into}` : `above ${base} into ${into}` };
}

function policyOf(text: string): string {
  if (ON_ERROR.includes(text)) return text;
  throw usageError(`--on-error ${text}: there are ${ON_ERROR.join(", ")}`);
}

/** Bytes per second from a person's words; 0 for no limit. */
export function speedOf(text: string): number {
  const speed = parseSize(text.replace(/\/s$/, ""));
  if (speed === undefined) throw usageError(`'${text}' is no speed: give bytes per second, such as 50M`);
  return speed;
}

export function speedText(speed: number): string {
  return speed === 0 ? "no limit" : `${formatSize(speed)}/s`;
}
