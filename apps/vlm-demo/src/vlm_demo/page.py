"""The page: a picture and a question on the left, the models' answers on the right, settings in a drawer."""

import random
from collections.abc import Iterator, Sequence

import gradio as gr

from vlm_demo.models import Loaded, Said, Settings, UserError

MAX_UPLOAD = "20mb"
WAITING = 32  # users in the queue; the next one is told to come back
KEPT = 3600  # seconds that uploaded pictures stay on disk
NOTHING = Said("")
CSS = ".answer textarea {font-size: 1.25rem; font-weight: 600}"


def build(models: Sequence[Loaded], examples: Sequence[tuple[str, str]]) -> gr.Blocks:
    """The page for these models; `examples` are pictures' files with questions."""
    names = [model.name for model in models]
    with gr.Blocks(title="vlm-demo", analytics_enabled=False, delete_cache=(KEPT, KEPT), fill_width=True) as page:
        with gr.Sidebar(label="Settings", open=False, position="right"):
            gr.Markdown("### Settings")
            tokens = gr.Slider(1, 256, 48, step=1, label="Longest answer (tokens)")
            beams = gr.Slider(1, 8, 1, step=1, label="Beams", info="1 takes the likeliest word each time")
            temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0 always gives the same answer")
            attention = gr.Checkbox(True, label="Show where the model looks")
        gr.Markdown(f"# {' · '.join(names)}")
        with gr.Row():
            with gr.Column(scale=1):
                image = gr.Image(
                    label="Picture", sources=["upload", "clipboard"], height=320, buttons=[], elem_id="picture"
                )
                # The file as it was sent: vlm-data decodes it, and says what is wrong with it.
                image.preprocess = lambda payload: payload and payload.path
                question = gr.Textbox(label="Question", placeholder="leave empty for a caption", elem_id="question")
                chosen = gr.CheckboxGroup(names, value=names, label="Models", visible=len(names) > 1, elem_id="models")
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
                if examples:
                    gr.Examples(
                        [list(example) for example in examples], [image, question], label="From the validation set"
                    )
            with gr.Column(scale=2), gr.Row():
                outputs = []
                for name in names:
                    with gr.Column(min_width=220) as column:
                        said = gr.Textbox(label=name, interactive=False, elem_classes="answer", lines=1)
                        looks = gr.Image(show_label=False, visible=False, format="png", buttons=["fullscreen"])
                    outputs += [column, said, looks]
        inputs = [image, question, chosen, tokens, beams, temperature, attention]
        answers = _answering(models)
        for event, name in ((ask.click, "ask"), (question.submit, None)):
            event(
                answers,
                inputs,
                outputs,
                api_name=name,
                api_visibility="public" if name else "private",
                show_progress_on=outputs[1::3],  # the texts: there, and not over drawings, an error is marked
                concurrency_limit=1,
                concurrency_id="models",
            )
    return page.queue(max_size=WAITING)


def _answering(models: Sequence[Loaded]):
    def answer(image, question, chosen, tokens, beams, temperature, attention) -> Iterator[list]:
        """Answers of the chosen models, as they come: a text and a drawing for each model of the page."""
        if not image:
            raise gr.Error("Give a picture first.", print_exception=False)
        if not chosen:
            raise gr.Error("Choose at least one model.", print_exception=False)
        settings = Settings(int(tokens), int(beams), float(temperature), random.randrange(2**31), bool(attention))
        answers: dict[str, Said] = {}

        def shown() -> list:
            return [part for one in models for part in _shown(one.name in chosen, answers.get(one.name, NOTHING))]

        yield shown()  # answers about another picture go first
        for model in models:
            if model.name in chosen:
                try:
                    answers[model.name] = model.answer(image, question or "", settings)
                except UserError as error:
                    raise gr.Error(str(error), print_exception=False) from error
                yield shown()

    return answer


def _shown(chosen: bool, said: Said) -> list:
    """Of a model's column, text and drawing; made anew each time, for gradio takes the values out of updates."""
    note = f"No drawing: {said.note}" if said.note else ""
    drawing = gr.update(value=said.looks, visible=said.looks is not None)
    return [gr.update(visible=chosen), gr.update(value=said.text, info=note), drawing]


def serve(page: gr.Blocks, host: str, port: int | None) -> str:
    """Start the server and return the page's address. Nothing but this machine is asked for anything."""
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        max_file_size=MAX_UPLOAD,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        ssr_mode=False,
        css=CSS,
    )
    return address
