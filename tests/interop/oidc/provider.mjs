// A certified OpenID Connect provider with a handful of people, for tests.
//
//   NODE_MODULES=… node provider.mjs <port> <redirect URI> <client secret>
//
// It makes a new signing key at each start. Whoever logs in as NAME is NAME; the password does not matter.
import { generateKeyPairSync, randomUUID } from "node:crypto";
import { pathToFileURL } from "node:url";

const module = pathToFileURL(`${process.env.NODE_MODULES}/oidc-provider/lib/index.js`).href;
const { Provider } = await import(module);
const [port, redirect, secret] = process.argv.slice(2);
const issuer = `http://127.0.0.1:${port}`;
const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
const key = { ...privateKey.export({ format: "jwk" }), kid: randomUUID(), use: "sig", alg: "RS256" };

const people = {
  ann: { email: "ann@example.org", email_verified: true, name: "Ann Other", groups: ["ops"] },
  bob: { email: "bob@example.org", email_verified: true, name: "Bob", groups: ["dev"] },
  eve: { email: "eve@example.org", email_verified: false, name: "Eve", groups: ["ops"] },
  mal: { email: "mal@example.com", email_verified: true, name: "<script>alert(1)</script>", groups: ["ops"] },
};

const provider = new Provider(issuer, {
  clients: [{ client_id: "mesh", client_secret: secret, redirect_uris: [redirect] }],
  claims: {
    openid: ["sub"],
    profile: ["name", "preferred_username", "picture"],
    email: ["email", "email_verified"],
    groups: ["groups"],
  },
  scopes: ["openid", "profile", "email", "groups"],
  pkce: { required: () => true },
  cookies: { keys: [randomUUID()] },
  jwks: { keys: [key] },
  findAccount: (_, id) => ({
    accountId: id,
    claims: () => ({ sub: id, preferred_username: id, ...people[id] }),
  }),
});
provider.listen(Number(port), "127.0.0.1", () => console.log("ready"));
