// What the scripts share. Arguments: a URL, and a list of options in JSON, one object a call.
// What is read goes out as lines of JSON; the last line of each call has `final` or `error`.

const [url, calls] = process.argv.slice(2);

export const print = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

/** Make the calls, one after the other, each until its end or its first error. */
export async function main(call) {
  for (const options of JSON.parse(calls)) {
    try {
      await call(url, options);
    } catch (error) {
      const { name, status = error.statusCode, code, message } = error;
      print({ error: { name, status, code, message } });
    }
  }
}

export const hello = [{ role: "user", content: "hello" }];
