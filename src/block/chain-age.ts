// The age of all chains of this process: it begins anew whenever something happens that may change which
// image of a chain holds a range, other than a write of a node that is open for writing. What was found out
// about layers below is void from then on (owner-index.ts).

let age = 0;

/** Compares equal as long as nothing of that kind has happened. */
export function chainAge(): number {
  return age;
}

/** A backing link, a node's driver or its rights change, or requests to a node are held back. */
export function beginChainAge(): void {
  age++;
}
