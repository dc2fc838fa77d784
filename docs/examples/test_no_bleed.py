from concurrent.futures import ThreadPoolExecutor

from test_chat import app, ask

from flask_byok.testing import assert_no_key_bleed


# begin
def test_nobody_uses_somebody_elses_key(app, byok_fake_providers):
    api_keys = {str(n): byok_fake_providers.api_key("openai", owner=n) for n in range(8)}

    def chat(owner):
        client = app.test_client()
        token = client.get("/api/providers/keys").json["csrf_token"]
        client.environ_base["HTTP_X_CSRFTOKEN"] = token
        body = {"provider": "openai", "api_key": api_keys[owner]}
        client.post("/api/providers/keys/set", json=body)
        return ask(client, f"hello from owner:{owner}").text

    with ThreadPoolExecutor() as pool:
        list(pool.map(chat, api_keys))
    assert_no_key_bleed(byok_fake_providers.calls, api_keys)


# end
