import { createInterface } from "node:readline";
import type { Command } from "commander";
import { type CommandContext, examples } from "../command-context.ts";
import { findDaemon } from "../control-directory.ts";
import { EXIT_CODES } from "../exit-codes.ts";
import { ExitRequest } from "../failure.ts";
import { HmpConnection, PROMPT } from "../hmp-connection.ts";
import { completions, imagesIn, namesIn, type Vocabulary } from "../monitor-completion.ts";

const HISTORY_LINES_MAX = 500;

export function addMonitor(program: Command, context: CommandContext): void {
  program
    .command("monitor [control]")
    .description("talk to a daemon: at a terminal with history and completion, or with lines from a pipe")
    .addHelpText(
      "after",
      examples(
        "strata monitor",
        "echo 'info block' | strata monitor",
        "strata monitor /run/strata/disk.hmp",
      ) +
        "\nCONTROL is a daemon's name or the path of its socket. From a pipe the exit code is 1 when a line failed.\n",
    )
    .action(async (control: string | undefined) => {
      const { hmp } = await findDaemon(control, context.environment);
      const { connection, greeting } = await HmpConnection.connect(hmp);
      try {
        if (process.stdin.isTTY === true) await atTerminal(connection, greeting, context);
        else await fromPipe(connection, context);
      } finally {
        connection.close();
      }
    });
}

async function atTerminal(
  connection: HmpConnection,
  greeting: string,
  context: CommandContext,
): Promise<void> {
  context.terminal.out(greeting);
  let words = await vocabulary(connection);
  const lines = createInterface({
    input: process.stdin,
    output: process.stdout,
    prompt: PROMPT,
    historySize: HISTORY_LINES_MAX,
    completer: (line: string) => completions(line, words),
  });
  // Ctrl-D may come while a line is under way: a prompt after that would take the terminal up again for ever.
  let left = false;
  lines.once("close", () => {
    left = true;
  });
  // Ctrl-C drops the line, as in a shell; Ctrl-D leaves.
  lines.on("SIGINT", () => {
    lines.write(null, { ctrl: true, name: "u" });
    context.terminal.out("^C\n");
    lines.prompt();
  });
  lines.prompt();
  for await (const line of lines) {
    if (line.trim() !== "") context.terminal.out(await connection.run(line));
    if (left || connection.isGone) break;
    // A line may have brought images or taken some away.
    words = await vocabulary(connection);
    if (left) break;
    lines.prompt();
  }
  lines.close();
  context.terminal.out("\n");
}

async function vocabulary(connection: HmpConnection): Promise<Vocabulary> {
  const commands = namesIn(await connection.run("help"));
  const topics = namesIn(await connection.run("info"));
  const shown = (await connection.run("info block")) + (await connection.run("info named-block-nodes"));
  return { commands, topics, images: [...new Set(imagesIn(shown))] };
}

async function fromPipe(connection: HmpConnection, context: CommandContext): Promise<void> {
  let failed = false;
  const lines = createInterface({ input: process.stdin, crlfDelay: Number.POSITIVE_INFINITY });
  for await (const line of lines) {
    if (line.trim() === "") continue;
    const answer = await connection.run(line);
    if (answer.startsWith("Error:")) failed = true;
    context.terminal.out(answer);
    if (connection.isGone) break;
  }
  if (failed) throw new ExitRequest(EXIT_CODES.ERROR.code);
}
