import type { Command } from "commander";
import { formatSize } from "../../base/units.ts";
import { type CommandContext, examples } from "../command-context.ts";
import { findDaemon } from "../control-directory.ts";
import { type JobView, viewJobs } from "../daemon-view.ts";
import { usageError } from "../failure.ts";
import { findJob, watchJob } from "../job-watch.ts";
import { percentOf } from "../progress-line.ts";
import { QmpClient } from "../qmp-client.ts";
import { textTable } from "../text-table.ts";
import { leave, speedOf, speedText } from "./stream.ts";

interface JobsFlags {
  readonly json?: boolean;
  readonly control?: string;
}

export function addJobs(program: Command, context: CommandContext): void {
  const jobs = program
    .command("jobs")
    .description("list the jobs of a daemon, or change one")
    .option("--json", "as QMP's query-block-jobs tells them")
    .option("--control <control>", "the daemon, where several run: its name or the path of its QMP socket")
    .addHelpText(
      "after",
      examples(
        "strata jobs",
        "strata jobs pause stream-E",
        "strata jobs speed stream-E 50M",
        "strata jobs watch",
      ),
    );
  const onDaemon = async (action: (client: QmpClient) => Promise<void>): Promise<void> => {
    const { qmp } = await findDaemon(jobs.opts<JobsFlags>().control, context.environment);
    const client = await QmpClient.connect(qmp);
    try {
      await action(client);
    } finally {
      client.close();
    }
  };
  // A word that is no verb arrives as an argument; the parser would speak of their number only.
  jobs.allowExcessArguments().action(() => {
    const [unknown] = jobs.args;
    if (unknown !== undefined) {
      const verbs = jobs.commands.map((each) => each.name()).join(", ");
      throw usageError(`a job cannot '${unknown}': there are ${verbs}; see 'strata jobs --help'`);
    }
    return onDaemon(async (client) => {
      const list = await viewJobs(client);
      const json = jobs.opts<JobsFlags>().json === true;
      context.terminal.out(json ? JSON.stringify(list, undefined, 2) + "\n" : jobTable(list));
    });
  });
  addVerbs(jobs, onDaemon, context);
}

function addVerbs(
  jobs: Command,
  onDaemon: (action: (client: QmpClient) => Promise<void>) => Promise<void>,
  context: CommandContext,
): void {
  const { terminal, clock, onInterrupt } = context;
  const verb = (name: string, description: string, command: string, done: string) =>
    jobs
      .command(`${name} <id>`)
      .description(description)
      .action((id: string) =>
        onDaemon(async (client) => {
          await client.execute(command, { device: findJob(await viewJobs(client), id).device });
          terminal.out(`job ${id} ${done}\n`);
        }),
      );
  verb("pause", "let a job stand still", "block-job-pause", "pauses");
  verb("resume", "let it go on, also after an error that stopped it", "block-job-resume", "goes on");
  verb(
    "cancel",
    "end it; the chain stays as it is",
    "block-job-cancel",
    "ends without a change of the chain",
  );
  jobs
    .command("speed <id> <bytes>")
    .description("limit its bytes per second, such as 50M; 0: no limit")
    .action((id: string, text: string) =>
      onDaemon(async (client) => {
        const speed = speedOf(text);
        await client.execute("block-job-set-speed", {
          device: findJob(await viewJobs(client), id).device,
          speed,
        });
        terminal.out(`job ${id}: ${speedText(speed)}\n`);
      }),
    );
  jobs
    .command("watch [id]")
    .description("show its progress until it ends; Ctrl-C ends the display only")
    .action((id: string | undefined) =>
      onDaemon(async (client) => {
        const job = findJob(await viewJobs(client), id).device;
        const json = jobs.opts<JobsFlags>().json === true;
        const settings = { client, id: job, label: job, terminal, clock, json, onInterrupt };
        leave(await watchJob(settings, async () => undefined), job);
      }),
    );
}

export function jobTable(jobs: readonly JobView[]): string {
  if (jobs.length === 0) return "no jobs\n";
  const left = (heading: string) => ({ heading, align: "left" }) as const;
  const right = (heading: string) => ({ heading, align: "right" }) as const;
  return textTable(
    [left("job"), left("type"), left("status"), right("done"), right("of"), right(""), right("limit")],
    jobs.map((job) => [
      job.device,
      job.type,
      job["io-status"] === "ok" ? job.status : `${job.status} (${job["io-status"]})`,
      formatSize(job.offset),
      formatSize(job.len),
      `${percentOf({ done: job.offset, total: job.len })}%`,
      job.speed === 0 ? "-" : speedText(job.speed),
    ]),
  );
}
