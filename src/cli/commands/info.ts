import type { Command } from "commander";
import { type CommandContext, examples } from "../command-context.ts";
import { chainInfo, imageInfo, infoText } from "../image-info.ts";
import { withImage } from "../open-image.ts";

interface InfoFlags {
  readonly format?: string;
  readonly json?: boolean;
  readonly backingChain?: boolean;
  readonly forceShare?: boolean;
}

export function addInfo(program: Command, context: CommandContext): void {
  program
    .command("info <file>")
    .description("what an image says of itself, as qemu-img info shows it")
    .option("-f, --format <format>", "qcow2 or raw; otherwise by the image's first bytes")
    .option("--backing-chain", "the images behind it too")
    .option("--json", "the same members as qemu-img info --output json")
    .option("-U, --force-share", "also while another process writes to it; what is told may be out of date")
    .addHelpText(
      "after",
      examples("strata info disk.qcow2", "strata info --backing-chain --json overlay.qcow2"),
    )
    .action(async (file: string, flags: InfoFlags) => {
      const whole = flags.backingChain === true;
      const infos = await withImage(file, { ...flags, backing: whole }, async (node) =>
        whole ? chainInfo(node) : [imageInfo(node)],
      );
      const { terminal } = context;
      if (flags.json === true) terminal.out(JSON.stringify(whole ? infos : infos[0], undefined, 4) + "\n");
      else terminal.out(infos.map(infoText).join("\n"));
    });
}
