/** A column: its heading, and on which side its cells stand. */
export interface Column {
  readonly heading: string;
  readonly align: "left" | "right";
}

/**
 * A table for people: columns as wide as their widest cell, two blanks between, no blanks at the ends of
 * lines.
 */
export function textTable(columns: readonly Column[], rows: readonly (readonly string[])[]): string {
  const all = [columns.map((column) => column.heading), ...rows];
  const widths = columns.map((_, at) => Math.max(...all.map((row) => (row[at] ?? "").length)));
  const lines = all.map((row) =>
    columns
      .map(({ align }, at) => {
        const cell = row[at] ?? "";
        return align === "right" ? cell.padStart(widths[at]!) : cell.padEnd(widths[at]!);
      })
      .join("  ")
      .trimEnd(),
  );
  return lines.join("\n") + "\n";
}
