// Which files an image may name. A backing link stands in the image, and who made the image may be nobody's
// friend: `/etc/shadow` as a raw backing file would be readable to a guest.
//
//   1. Allowed are files below the directories that the user gave, and below the folder of the image that the
//      user named (its home): that image's chain is most often there.
//   2. Names are compared without symbolic links, on both sides: a link inside a root that leads out of it
//      leads out.
//   3. Between this look and the opening of the file somebody who may write to a root can still put a link in
//      place of a folder. So a root is for directories whose writers are trusted; images in it need not be.

import path from "node:path";
import { BlockError } from "../base/errors.ts";
import { realDirectory, realPath } from "../sys/real-path.ts";

/** A name in an image. */
export interface NamedFile {
  /** The image that holds it, and the name as it stands there. */
  readonly image: string;
  readonly link: string;
  /** Folder of the image that the user named. */
  readonly home: string | undefined;
}

export class BackingRoots {
  readonly #roots: readonly string[];

  /** @throws BlockError what the host says of a directory that is not there */
  constructor(directories: readonly string[]) {
    this.#roots = directories.map(realDirectory);
  }

  /** @throws BlockError EACCES that names image and file and says how to allow it */
  refuseOutside(filename: string, { image, link, home }: NamedFile): void {
    const real = realPath(filename);
    const roots = home === undefined ? this.#roots : [realPath(home), ...this.#roots];
    if (roots.some((root) => isBelow(real, root))) return;
    const allowed = [...new Set(roots)].map((root) => `'${root}'`).join(", ") || "none";
    const meant = real === link ? "" : `, that is '${real}'`;
    throw new BlockError(
      "EACCES",
      `image '${image}' names '${link}' as a file below it${meant}: it may name files in these directories ` +
        `only: ${allowed}. If you trust the image, allow it with --backing-root ${path.dirname(real)}`,
    );
  }
}

function isBelow(file: string, root: string): boolean {
  return file.startsWith(root.endsWith("/") ? root : `${root}/`);
}
