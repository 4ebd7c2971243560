// What stands in an image when the guest is gone: is its file system whole?

import { rmSync } from "node:fs";
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
