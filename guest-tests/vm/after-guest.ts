// What stands in the images when the guest is gone: are they whole, and the file system in them?

import { rmSync } from "node:fs";
import { checkForErrors } from "../harness/chain.ts";
import { run } from "../harness/tool.ts";

/**
 * fsck reads the whole file system in a copy of what the guest saw, and finds nothing to mend.
 * @throws ToolError with fsck's words
 */
export async function checkFileSystem(image: string): Promise<void> {
  const copy = `${image}.copy`;
  await run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, copy);
  await run("e2fsck", "-fn", copy);
  rmSync(copy);
}

/** No image of the chain is damaged; what leaked the daemon finds when it opens the image. */
export async function checkChain(top: string): Promise<void> {
  const told = await run("qemu-img", "info", "--backing-chain", "--output=json", top);
  for (const { filename } of JSON.parse(told) as { filename: string }[]) await checkForErrors(filename);
}
