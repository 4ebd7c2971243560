import { existsSync } from "node:fs";
import path from "node:path";
import type { Command } from "commander";
import { BlockError } from "../../base/errors.ts";
import { formatSize, parseSize } from "../../base/units.ts";
import { type CreateOptions, createQcow2, newHeader } from "../../format/qcow2/create.ts";
import { hostImageFile } from "../../format/qcow2/image-file.ts";
import { createRaw, type RawCreateOptions } from "../../format/raw/create.ts";
import { createHostFile } from "../../sys/create-host-file.ts";
import { type CommandContext, examples } from "../command-context.ts";
import { parseImageOptions, qcow2Options, rawOptions } from "../create-options.ts";
import { usageError } from "../failure.ts";
import { openOffline } from "../open-image.ts";
import { repeatable } from "../repeatable-option.ts";

interface CreateFlags {
  readonly format: string;
  readonly backing?: string;
  readonly backingFormat?: string;
  readonly options: readonly string[];
  readonly force?: boolean;
}

export function addCreate(program: Command, context: CommandContext): void {
  program
    .command("create <file> [size]")
    .description("make a new image; the size may be left away where there is a backing image")
    .option("-f, --format <format>", "qcow2 or raw", "qcow2")
    .option("-b, --backing <file>", "image that the new one stands on")
    .option("-F, --backing-format <format>", "its format; it is never guessed")
    .addOption(
      repeatable(
        "-o, --options <list>",
        "as in qemu-img: cluster_size, compat, lazy_refcounts, refcount_bits, extended_l2, compression_type, preallocation",
      ),
    )
    .option("--force", "replace an image that stands there")
    .addHelpText(
      "after",
      examples(
        "strata create disk.qcow2 20G",
        "strata create overlay.qcow2 -b disk.qcow2 -F qcow2",
        "strata create big.qcow2 1T -o cluster_size=1M,extended_l2=on",
      ),
    )
    .action(async (file: string, size: string | undefined, flags: CreateFlags) => {
      const bytes = await createImage(file, size, flags);
      context.terminal.out(`${file}: ${flags.format}, ${formatSize(bytes)}\n`);
    });
}

/** Makes the image and gives the length of its disk in bytes. */
async function createImage(file: string, sizeText: string | undefined, flags: CreateFlags): Promise<number> {
  if (flags.format !== "qcow2" && flags.format !== "raw") {
    throw usageError(`unknown format '${flags.format}': qcow2 and raw can be made`);
  }
  const given = parseImageOptions(flags.options);
  const backing = flags.backing ?? given.get("backing_file");
  const backingFormat = flags.backingFormat ?? given.get("backing_fmt");
  given.delete("backing_file");
  given.delete("backing_fmt");
  const size = await sizeFor(file, sizeText, backing, backingFormat);
  // Options are checked before the file is touched: a mistake leaves what stands there as it was.
  if (flags.format === "raw") {
    if (backing !== undefined) throw usageError("a raw image has no backing link: use -f qcow2");
    const options: RawCreateOptions = { size, ...rawOptions(given) };
    refuseOverwriting(file, flags.force);
    await createRaw(file, options);
    return size;
  }
  const options: CreateOptions = {
    size,
    ...qcow2Options(given),
    ...(backing !== undefined && { backingFile: backing }),
    ...(backingFormat !== undefined && { backingFormat }),
  };
  newHeader(options);
  refuseOverwriting(file, flags.force);
  await makeQcow2(file, options);
  return size;
}

async function sizeFor(
  file: string,
  text: string | undefined,
  backing: string | undefined,
  backingFormat: string | undefined,
): Promise<number> {
  // The backing image is opened also where the size is given: a name with a typing error is noticed now.
  const inherited = backing === undefined ? undefined : await backingSize(file, backing, backingFormat);
  if (text === undefined) {
    if (inherited === undefined) throw usageError(`how large? 'strata create ${file} 20G'`);
    return inherited;
  }
  const size = parseSize(text);
  if (size === undefined) throw usageError(`'${text}' is no size: give bytes, or a number with K, M, G or T`);
  return size;
}

async function backingSize(file: string, backing: string, format: string | undefined): Promise<number> {
  if (format === undefined) {
    throw usageError(`the format of the backing image '${backing}' is not stated: add -F qcow2 or -F raw`);
  }
  const resolved = path.isAbsolute(backing) ? backing : path.join(path.dirname(file), backing);
  const opened = await openOffline(resolved, { format, forceShare: true });
  try {
    return opened.node.size;
  } finally {
    await opened.close();
  }
}

function refuseOverwriting(file: string, force: boolean | undefined): void {
  if (force === true || !existsSync(file)) return;
  throw new BlockError("EEXIST", `'${file}' exists already: choose another name, or replace it with --force`);
}

async function makeQcow2(file: string, options: CreateOptions): Promise<void> {
  const hostFile = await createHostFile(file, { size: 0 });
  try {
    await createQcow2(hostImageFile(hostFile), options);
  } finally {
    await hostFile.close();
  }
}
