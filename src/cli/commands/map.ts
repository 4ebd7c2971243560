import type { Command } from "commander";
import { chainOf } from "../../block/chain.ts";
import { type CommandContext, examples } from "../command-context.ts";
import { imageMap, mapJson, mapText } from "../image-map.ts";
import { withImage } from "../open-image.ts";

interface MapFlags {
  readonly format?: string;
  readonly json?: boolean;
  readonly forceShare?: boolean;
}

export function addMap(program: Command, context: CommandContext): void {
  program
    .command("map <file>")
    .description("which image of the chain holds which part of the disk, as qemu-img map tells it")
    .option("-f, --format <format>", "qcow2 or raw; otherwise by the image's first bytes")
    .option("--json", "every part, with the same members as qemu-img map --output json")
    .option("-U, --force-share", "also while another process writes to it; what is told may be out of date")
    .addHelpText("after", examples("strata map overlay.qcow2", "strata map --json disk.raw -f raw"))
    .action(async (file: string, flags: MapFlags) => {
      const text = await withImage(file, flags, async (node) => {
        const entries = await imageMap(node);
        if (flags.json === true) return mapJson(entries);
        return mapText(
          entries,
          chainOf(node).map((image) => image.filename),
        );
      });
      context.terminal.out(text);
    });
}
