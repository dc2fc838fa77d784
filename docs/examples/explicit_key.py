# begin
from flask_byok import get_provider_with_api_key

provider = get_provider_with_api_key("openai", api_key="sk-proj-made-up-0123456789")
print(provider)  # <OpenAIProvider openai source=argument hint='sk-proj-…6789'>
print(provider.to_dict()["hint"])  # sk-proj-…6789
# end
