// The age of all chains of this process: it begins anew whenever something happens that may change which
// image of a chain holds a range, other than a write of a node that is open for writing. What was found out
// about layers below is void from then on (owner-index.ts).
//
//   Who keeps such answers is told, and lets go of them: one that nobody asks again would hold on to images
//   that have left their chains, and they to those that they have left, without end.

let age = 0;

/** What was found out in this age, and is void in the next one. */
export interface OfThisAge {
  /** Lets go of it all; called in any turn of the loop, also while answers are looked up. */
  forget(): void;
}

const kept = new Set<OfThisAge>();

/** `answers` are told to forget when the next age begins. */
export function keepForThisAge(answers: OfThisAge): void {
  kept.add(answers);
}

/** Compares equal as long as nothing of that kind has happened. */
export function chainAge(): number {
  return age;
}

/** A backing link, a node's driver or its rights change, or requests to a node are held back. */
export function beginChainAge(): void {
  age++;
  for (const answers of kept) answers.forget();
  kept.clear();
}
