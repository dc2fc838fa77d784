from flask import Flask, current_app, session

from flask_byok import BYOK

byok = BYOK()


def add_accounts(app: Flask) -> None:
    # begin
    @byok.owner_loader
    def current_user_id():
        return session.get("user_id")  # None for a visitor

    @app.post("/sign-in/<user_id>")  # after the password was checked
    def sign_in(user_id):
        current_app.session_interface.regenerate(session)  # of Flask-Session
        session["user_id"] = user_id
        return "signed in"

    @app.post("/sign-out")
    def sign_out():
        session.clear()
        return "signed out"

    # end
