"""Fine-tune with OpenAI's own client, and talk to the result: `python examples/openai_finetune.py MODEL`.

It finds the server as every program of that client does: OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none
"""

import sys
import time
from pathlib import Path

import openai

client = openai.OpenAI()
rows = client.files.create(file=Path(__file__).parent / "demo" / "tickets.jsonl", purpose="fine-tune")
job = client.fine_tuning.jobs.create(
    model=sys.argv[1],
    training_file=rows.id,
    suffix="tickets",
    method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}},
)
while job.status not in ("succeeded", "failed", "cancelled"):
    time.sleep(1)
    job = client.fine_tuning.jobs.retrieve(job.id)
if job.fine_tuned_model is None:
    sys.exit(f"{job.status}: {job.error}")
answer = client.chat.completions.create(
    model=job.fine_tuned_model,
    messages=[
        {"role": "system", "content": "Turn the message into a JSON ticket."},
        {"role": "user", "content": "Hello, the kettle from order 4711 arrived broken. Please send me a new one."},
    ],
    temperature=0,
)
print(job.fine_tuned_model, answer.choices[0].message.content)
