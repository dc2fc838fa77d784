"""Ask STS whose keys these are, with AWS's own SDK: ``aws_identity.py URL ACCESS_KEY_ID=SECRET…``. Prints JSON.

Run by the peers' Python, which has botocore.
"""

import json
import sys

import boto3
from botocore.exceptions import ClientError

url, *pairs = sys.argv[1:]
answers = []
for key_id, secret in (pair.split("=", 1) for pair in pairs):
    keys = {"aws_access_key_id": key_id, "aws_secret_access_key": secret}
    sts = boto3.client("sts", endpoint_url=url, region_name="us-east-1", **keys)
    try:
        answers.append({"arn": sts.get_caller_identity()["Arn"]})
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        answers.append({"status": status, "code": error.response["Error"]["Code"]})
json.dump(answers, sys.stdout)
