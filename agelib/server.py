"""What agelib adds to the Jupyter server beside it: photos get in, no faces get out.

`server.json` names this module to every Jupyter server of an environment, once it lies
in the environment's `etc/jupyter/jupyter_server_config.d`, where `make lab` puts it.
"""

# bytes: what tornado takes by default, 10 MiB, is less than many a phone's photo, and
# a larger one would be dropped without a word
LARGEST_MESSAGE = 2**28


def _jupyter_server_extension_points() -> list[dict]:
    return [{"module": "agelib.server"}]


def _load_jupyter_server_extension(app) -> None:
    app.web_app.settings.setdefault("websocket_max_message_size", LARGEST_MESSAGE)
    # once the server runs: another extension may replace the contents manager, as that
    # of jupytext does, which comes with kaggle
    app.io_loop.add_callback(
        lambda: app.contents_manager.register_pre_save_hook(drop_outputs)
    )


def drop_outputs(model: dict, **_) -> None:
    """Takes from a notebook that is about to be saved what may show a person's face.

    Only from notebooks that ask for it, by `{"agelib": {"save_outputs": false}}` in
    their metadata, which their copies have too. The page keeps what it shows.

    Args:
        model: of a file, as Jupyter's contents managers hand it to their hooks.
    """
    content = model.get("content")
    if model.get("type") != "notebook" or not content:
        return
    metadata = content["metadata"]
    if metadata.get("agelib", {}).get("save_outputs", True):
        return
    # an upload button's state is its photo
    metadata.pop("widgets", None)
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
