// Specs as files: YAML as this server reads it, and a command line for the same. Files are read back where they are plain.

const PLAIN = /^[A-Za-z_][\w./-]*$/;
const WORDS = /^(y|yes|n|no|on|off|true|false|null)$/i;

const scalar = (value) => typeof value === "string" && PLAIN.test(value) && !WORDS.test(value) ? value : JSON.stringify(value);

export const toYaml = (spec) => Object.entries(spec).map(([key, value]) => `${key}: ${scalar(value)}`).join("\n");

const quoted = (text) => /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
const dashes = (name) => name.replaceAll("_", "-");
const NESTED = (value) => typeof value === "object" && value !== null;
const COMMANDS = { train: "train", sweep: "train", merge: "merge", evaluate: "eval", export: "export", pull: "pull" };
const ALONE = { pull: "source", export: "model" };

/** The command that asks for the same; null where only a file can say it. */
export function toCommand(kind, spec) {
  if (!COMMANDS[kind]) return null;
  const words = ["modelworks", COMMANDS[kind]];
  if (ALONE[kind]) words.push(quoted(String(spec[ALONE[kind]] ?? ALONE[kind].toUpperCase())));
  for (const [name, value] of Object.entries(spec)) {
    if (name === ALONE[kind]) continue;
    const flag = `--${dashes(name)}`;
    if (Array.isArray(value)) {
      if (value.some(NESTED)) return null;
      words.push(flag, ...value.map((each) => quoted(String(each))));
    } else if (NESTED(value)) {
      words.push(flag, ...Object.entries(value).map(([key, inner]) => quoted(`${key}=${NESTED(inner) ? JSON.stringify(inner) : inner}`)));
    } else words.push(...(typeof value === "boolean" ? [value ? flag : `--no-${dashes(name)}`] : [flag, quoted(String(value))]));
  }
  return words.join(" ");
}

/** Read JSON, or YAML of mappings, lists and values; what is beyond that is refused with its line. */
export function parseSpec(text) {
  if (text.trimStart().startsWith("{")) return JSON.parse(text);
  const lines = text.split(/\r?\n/).map((line, index) => ({ text: withoutComment(line).trimEnd(), number: index + 1 }))
    .filter((line) => line.text.trim() && line.text.trim() !== "---")
    .map((line) => ({ ...line, indent: line.text.search(/\S/), text: line.text.trim() }));
  const found = block(lines, 0);
  if (lines.length) throw bad(lines[0]);
  if (!NESTED(found) || Array.isArray(found)) throw new Error("the file holds no KEY: VALUE lines");
  return found;
}

function withoutComment(line) {
  let quote = "";
  for (let at = 0; at < line.length; at++) {
    const each = line[at], before = line[at - 1] ?? " ";
    if (quote) {
      if (each === "\\" && quote === '"') at++;
      else if (each === quote) quote = "";
    } else if (/["']/.test(each) && /[\s[{,:]/.test(before)) quote = each;
    else if (each === "#" && /\s/.test(before)) return line.slice(0, at);
  }
  return line;
}

const bad = (line) => new Error(`line ${line.number} cannot be read here: ${line.text}; write the file as JSON, or give it to the command line`);

function block(lines, indent) {
  if (!lines.length || lines[0].indent < indent) return null;
  const depth = lines[0].indent, isList = /^- ?/.test(lines[0].text);
  const list = [], map = {};
  while (lines.length && lines[0].indent === depth && /^-( |$)/.test(lines[0].text) === isList) {
    const line = lines[0];
    if (isList) {
      const rest = line.text.slice(1).trimStart();
      if (/^[\w.-]+:( |$)/.test(rest)) {
        Object.assign(line, { text: rest, indent: depth + line.text.length - rest.length });
        list.push(block(lines, depth + 1));
      } else {
        lines.shift();
        list.push(rest ? value(rest, line) : block(lines, depth + 1));
      }
    } else {
      const [, key, rest] = line.text.match(/^"?([\w.-]+)"?:(?:\s+(.*))?$/) ?? (() => { throw bad(line); })();
      lines.shift();
      const inner = lines[0] && (lines[0].indent > depth || (lines[0].indent === depth && lines[0].text.startsWith("- "))) ? lines[0].indent : depth + 1;
      map[key] = rest ? value(rest, line) : block(lines, inner);
    }
  }
  if (lines.length && lines[0].indent > depth) throw bad(lines[0]);
  return isList ? list : map;
}

const TOKEN = /"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[[\]{},]|:(?=\s|$)|[^\s[\]{},:"'](?:[^[\]{},:]|:(?!\s|$))*/g;

function value(text, line) {
  if (/^[|>&*!%@`]/.test(text)) throw bad(line);
  if (!/^[[{]/.test(text)) return word(text);
  try { return JSON.parse(text); } catch { /* not JSON: its words stand without quotes */ }
  try {
    return JSON.parse(text.match(TOKEN).map((token) => /^[[\]{},:]$/.test(token) ? token : JSON.stringify(word(token.trim()))).join(""));
  } catch {
    throw bad(line);
  }
}

function word(text) {
  if (text.startsWith('"')) return JSON.parse(text);
  if (text.startsWith("'")) return text.slice(1, -1).replaceAll("''", "'");
  if (/^(true|yes|on)$/i.test(text)) return true;
  if (/^(false|no|off)$/i.test(text)) return false;
  if (/^(null|~)$/.test(text)) return null;
  return /^[-+]?(\d[\d_]*\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(text) ? Number(text.replaceAll("_", "")) : text;
}
